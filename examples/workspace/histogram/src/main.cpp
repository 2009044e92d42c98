// histogram [FILE]: the ten most frequent words of a text as bars.
#include "chart.hpp"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <memory>
#include <tally.h>

int main(int argc, char** argv)
{
    if (argc > 2) {
        std::cerr << "usage: histogram [FILE]\n";
        return 2;
    }
    FILE* stream = argc == 2 ? std::fopen(argv[1], "rb") : stdin;
    if (!stream) {
        std::cerr << "histogram: " << argv[1] << ": " << std::strerror(errno) << '\n';
        return 1;
    }

    const std::unique_ptr<tally, void (*)(tally*)> counts(tally_new(), tally_free);
    const tally_word* words = nullptr;
    if (!counts || tally_read(counts.get(), stream) < 0 || !(words = tally_sorted(counts.get()))) {
        std::cerr << "histogram: " << std::strerror(errno) << '\n';
        return 1;
    }

    std::vector<chart::Bar> bars;
    for (std::size_t i = 0; i < tally_distinct(counts.get()) && i < 10; i++)
        bars.push_back({words[i].word, words[i].count});
    std::cout << chart::draw(bars, 40) << std::flush;
    return std::cout ? 0 : 1;
}
