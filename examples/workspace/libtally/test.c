/* Every check names itself, so that a failing build log says what broke. */
#include "tally.h"

#include <stdlib.h>
#include <string.h>

static int failures;

static void expect(int ok, const char *what)
{
    printf("%s - %s\n", ok ? "ok" : "NOT OK", what);
    failures += !ok;
}

static tally *of(const char *text)
{
    tally *t = tally_new();
    FILE *stream = tmpfile();
    if (!t || !stream) {
        puts("NOT OK - memory and a temporary file");
        exit(1);
    }
    fputs(text, stream);
    rewind(stream);
    expect(tally_read(t, stream) == 0, "a readable stream is read");
    fclose(stream);
    return t;
}

int main(void)
{
    tally *t = of("");
    expect(tally_total(t) == 0 && tally_distinct(t) == 0, "an empty text has no words");
    expect(tally_sorted(t) != NULL, "and sorting it is harmless");
    tally_free(t);

    t = of("The cat, the dog; THE END. 42 caf\xc3\xa9");
    const tally_word *words = tally_sorted(t);
    expect(tally_total(t) == 8, "punctuation separates words");
    expect(tally_distinct(t) == 6, "words differ without their case");
    expect(words[0].count == 3 && !strcmp(words[0].word, "the"), "the most frequent word is first");
    expect(!strcmp(words[1].word, "42") && !strcmp(words[2].word, "caf\xc3\xa9"), "equals are in order of bytes");
    tally_free(t);

    t = tally_new();
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 5000; i++) {
            char word[16];
            snprintf(word, sizeof word, "w%d", i);
            tally_add(t, word);
        }
    expect(tally_distinct(t) == 5000 && tally_total(t) == 10000, "the table grows and forgets nothing");
    tally_free(t);

    char *longest = malloc(10001);
    memset(longest, 'x', 10000);
    longest[10000] = '\0';
    t = of(longest);
    expect(strlen(tally_sorted(t)[0].word) == 10000, "a word may be long");
    tally_free(t);
    free(longest);

    return failures != 0;
}
