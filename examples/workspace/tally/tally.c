/* tally [-n COUNT] [FILE]: the most frequent words of a text, one "COUNT<tab>WORD" a line. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tally.h>

int main(int argc, char **argv)
{
    size_t limit = (size_t)-1;
    int at = 1;

    if (argc > 2 && !strcmp(argv[1], "-n")) {
        char *end;
        limit = strtoul(argv[2], &end, 10);
        if (*end || end == argv[2]) {
            fprintf(stderr, "tally: %s is not a number\n", argv[2]);
            return 2;
        }
        at = 3;
    }
    if (argc > at + 1) {
        fprintf(stderr, "usage: tally [-n COUNT] [FILE]\n");
        return 2;
    }

    FILE *stream = stdin;
    if (at < argc && !(stream = fopen(argv[at], "rb"))) {
        fprintf(stderr, "tally: %s: %s\n", argv[at], strerror(errno));
        return 1;
    }
    tally *t = tally_new();
    const tally_word *words = NULL;
    if (!t || tally_read(t, stream) < 0 || !(words = tally_sorted(t))) {
        fprintf(stderr, "tally: %s\n", strerror(errno));
        return 1;
    }
    for (size_t i = 0; i < tally_distinct(t) && i < limit; i++)
        printf("%zu\t%s\n", words[i].count, words[i].word);
    tally_free(t);
    return fclose(stdout) == 0 ? 0 : 1;
}
