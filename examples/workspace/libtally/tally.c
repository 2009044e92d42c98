#include "tally.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Open addressing: `slots` holds index + 1 into `words`, 0 is free. Words never move between reallocations of
 * `words`, so a slot stays right until the table is sorted; sorting therefore works on a copy. */
struct tally {
    tally_word *words;
    tally_word *sorted;
    size_t *slots;
    size_t used, slot_count, total;
};

static uint64_t hash(const char *s)
{
    uint64_t h = 14695981039346656037u; /* FNV-1a */
    for (; *s; s++)
        h = (h ^ (unsigned char)*s) * 1099511628211u;
    return h;
}

static size_t *slot_of(size_t *slots, size_t slot_count, const tally_word *words, const char *word)
{
    size_t i = (size_t)hash(word) & (slot_count - 1);
    while (slots[i] && strcmp(words[slots[i] - 1].word, word) != 0)
        i = (i + 1) & (slot_count - 1);
    return &slots[i];
}

static int grow(tally *t)
{
    size_t count = t->slot_count * 2;
    size_t *slots = calloc(count, sizeof *slots);
    tally_word *words = realloc(t->words, count / 2 * sizeof *words);
    if (words)
        t->words = words;
    if (!slots || !words) {
        free(slots);
        return -1;
    }
    for (size_t i = 0; i < t->used; i++)
        *slot_of(slots, count, t->words, t->words[i].word) = i + 1;
    free(t->slots);
    t->slots = slots;
    t->slot_count = count;
    return 0;
}

tally *tally_new(void)
{
    tally *t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    t->slot_count = 32;
    if (grow(t) < 0) {
        tally_free(t);
        return NULL;
    }
    return t;
}

void tally_free(tally *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->used; i++)
        free((char *)t->words[i].word);
    free(t->words);
    free(t->sorted);
    free(t->slots);
    free(t);
}

int tally_add(tally *t, const char *word)
{
    size_t *slot = slot_of(t->slots, t->slot_count, t->words, word);
    if (!*slot) {
        if (t->used >= t->slot_count / 2) {
            if (grow(t) < 0)
                return -1;
            slot = slot_of(t->slots, t->slot_count, t->words, word);
        }
        char *copy = strdup(word);
        if (!copy)
            return -1;
        t->words[t->used] = (tally_word){copy, 0};
        *slot = ++t->used;
    }
    t->words[*slot - 1].count++;
    t->total++;
    return 0;
}

/* Only ASCII: the answer must not depend on the locale. Bytes above 127 belong to words, so UTF-8 stays whole. */
static int letter(int c)
{
    return c >= 128 || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

int tally_read(tally *t, FILE *stream)
{
    size_t room = 64, length = 0;
    char *word = malloc(room);
    int result = word ? 0 : -1;

    while (result == 0) {
        int c = getc(stream);
        if (c != EOF && letter(c)) {
            if (length + 1 == room) {
                char *longer = realloc(word, room * 2);
                if (!longer) {
                    result = -1;
                    break;
                }
                word = longer;
                room *= 2;
            }
            word[length++] = (char)(c >= 'A' && c <= 'Z' ? c + 32 : c);
            continue;
        }
        if (length) {
            word[length] = '\0';
            result = tally_add(t, word);
            length = 0;
        }
        if (c == EOF)
            break;
    }
    free(word);
    return ferror(stream) ? -1 : result;
}

size_t tally_distinct(const tally *t)
{
    return t->used;
}

size_t tally_total(const tally *t)
{
    return t->total;
}

static int by_count(const void *a, const void *b)
{
    const tally_word *x = a, *y = b;
    if (x->count != y->count)
        return x->count < y->count ? 1 : -1;
    return strcmp(x->word, y->word);
}

const tally_word *tally_sorted(tally *t)
{
    tally_word *sorted = realloc(t->sorted, (t->used ? t->used : 1) * sizeof *sorted);
    if (!sorted)
        return NULL;
    t->sorted = sorted;
    if (t->used) {
        memcpy(sorted, t->words, t->used * sizeof *sorted);
        qsort(sorted, t->used, sizeof *sorted, by_count);
    }
    return sorted;
}
