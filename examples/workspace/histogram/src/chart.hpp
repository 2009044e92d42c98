// Bars made of text.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace chart {

struct Bar {
    std::string label;
    std::size_t value;
};

// One line a bar: the label aligned right, a bar of '#' and the value. The largest value gets `width` signs,
// the others in proportion, and everything above zero gets at least one.
// Throws std::invalid_argument when `width` is zero.
std::string draw(const std::vector<Bar>& bars, std::size_t width);

} // namespace chart
