#include "chart.hpp"

#include <iostream>
#include <stdexcept>

namespace {

int failures = 0;

void expect(const std::string& what, const std::string& expected, const std::string& actual)
{
    const bool ok = expected == actual;
    std::cout << (ok ? "ok - " : "NOT OK - ") << what << '\n';
    if (!ok)
        std::cout << "expected:\n" << expected << "got:\n" << actual;
    failures += !ok;
}

} // namespace

int main()
{
    expect("no bars, no lines", "", chart::draw({}, 10));
    expect("bars are in proportion", "  a #### 8\nbcd ## 4\n", chart::draw({{"a", 8}, {"bcd", 4}}, 4));
    expect("a small value is still seen", "x #### 1000\ny # 1\n", chart::draw({{"x", 1000}, {"y", 1}}, 4));
    expect("zero has no bar", "z  0\n", chart::draw({{"z", 0}}, 4));

    std::string caught = "nothing";
    try {
        chart::draw({{"a", 1}}, 0);
    } catch (const std::invalid_argument&) {
        caught = "invalid_argument";
    }
    expect("a width of zero is refused", "invalid_argument", caught);
    return failures != 0;
}
