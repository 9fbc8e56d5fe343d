#include "experiments/options/plain_output.hpp"

#include <algorithm>
#include <string>
#include <string_view>

#include "core/base/line_text.hpp"
#include "profiler/text/table.hpp"

namespace moescope {

namespace {

/// plain_lines() of what stands between colours.
std::string between_colours(std::string_view text) {
  std::string out;
  std::size_t begin = 0;
  for (std::size_t at = 0; (at = text.find('\x1b', at)) != std::string_view::npos;) {
    const auto codes = colour_codes();
    const auto code =
        std::ranges::find_if(codes, [&](std::string_view c) { return text.substr(at).starts_with(c); });
    if (code == codes.end()) {
      ++at;
      continue;
    }
    out += plain_lines(text.substr(begin, at - begin));
    out += *code;
    at = begin = at + code->size();
  }
  return out + plain_lines(text.substr(begin));
}

}  // namespace

PlainOutput::PlainOutput(std::ostream& stream, bool colours)
    : filter_(stream, [colours](std::string_view text) {
        return colours ? between_colours(text) : plain_lines(text);
      }) {}

}  // namespace moescope
