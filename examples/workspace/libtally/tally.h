/* libtally: counts how often each word occurs in a text. */
#ifndef TALLY_H
#define TALLY_H

#include <stddef.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tally tally;

typedef struct tally_word {
    const char *word; /* lower case, NUL-terminated; lives as long as its tally */
    size_t count;
} tally_word;

/* An empty tally, or NULL when memory is short. */
tally *tally_new(void);
void tally_free(tally *t);

/* Counts one word as it is. Returns 0, or -1 when memory is short. */
int tally_add(tally *t, const char *word);

/* Counts every word of a stream: runs of letters and digits, ASCII letters in lower case.
 * Returns 0, or -1 when memory is short or the stream reports an error. */
int tally_read(tally *t, FILE *stream);

/* How many different words, and how many in all. */
size_t tally_distinct(const tally *t);
size_t tally_total(const tally *t);

/* The words, most frequent first and alphabetically among equals; valid until the next change. */
const tally_word *tally_sorted(tally *t);

#ifdef __cplusplus
}
#endif
#endif
