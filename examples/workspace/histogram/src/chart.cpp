#include "chart.hpp"

#include <algorithm>
#include <sstream>
#include <stdexcept>

namespace chart {

std::string draw(const std::vector<Bar>& bars, std::size_t width)
{
    if (width == 0)
        throw std::invalid_argument("a chart needs a width of at least 1");

    std::size_t largest = 0, longest = 0;
    for (const auto& bar : bars) {
        largest = std::max(largest, bar.value);
        longest = std::max(longest, bar.label.size());
    }

    std::ostringstream out;
    for (const auto& bar : bars) {
        const auto length = bar.value ? std::max<std::size_t>(1, bar.value * width / largest) : 0;
        out << std::string(longest - bar.label.size(), ' ') << bar.label << ' ' << std::string(length, '#') << ' '
            << bar.value << '\n';
    }
    return out.str();
}

} // namespace chart
