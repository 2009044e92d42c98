/* roman NUMBER: a number from 1 to 3999 in Roman numerals. */
#include <stdio.h>
#include <stdlib.h>

static const struct {
    int value;
    const char *numeral;
} table[] = {
    {1000, "M"}, {500, "D"}, {400, "CD"}, {100, "C"}, {90, "XC"}, {50, "L"},
    {40, "XL"}, {10, "X"}, {9, "IX"}, {5, "V"}, {4, "IV"}, {1, "I"},
};

int main(int argc, char **argv)
{
    char *end = "";
    long number = argc == 2 ? strtol(argv[1], &end, 10) : 0;

    if (number < 1 || number > 3999 || *end) {
        fprintf(stderr, "usage: roman NUMBER (1 to 3999)\n");
        return 2;
    }
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        for (; number >= table[i].value; number -= table[i].value)
            fputs(table[i].numeral, stdout);
    putchar('\n');
    return 0;
}
