#include "experiments/options/plain_output.hpp"

#include <algorithm>
#include <streambuf>
#include <string>
#include <string_view>

#include "core/base/line_text.hpp"
#include "profiler/text/table.hpp"

namespace moescope {

class PlainOutput::Filter : public std::streambuf {
 public:
  Filter(std::streambuf* target, bool colours) : target_(target), colours_(colours) {}
  std::streambuf* target() const { return target_; }

 protected:
  int_type overflow(int_type c) override {
    if (traits_type::eq_int_type(c, traits_type::eof())) {
      return traits_type::not_eof(c);
    }
    const char one = traits_type::to_char_type(c);
    return xsputn(&one, 1) == 1 ? c : traits_type::eof();
  }

  std::streamsize xsputn(const char* text, std::streamsize size) override {
    waiting_.append(text, static_cast<std::size_t>(size));
    const std::size_t end = waiting_.rfind('\n');
    return end == std::string::npos || pass_on(end + 1) ? size : 0;
  }

  int sync() override { return pass_on(waiting_.size()) && target_->pubsync() == 0 ? 0 : -1; }

 private:
  /// Whether the first `size` bytes got where they go.
  bool pass_on(std::size_t size) {
    const std::string text = shown(std::string_view(waiting_).substr(0, size));
    waiting_.erase(0, size);
    const auto length = static_cast<std::streamsize>(text.size());
    return target_->sputn(text.data(), length) == length;
  }

  /// plain_lines() of what stands between colours.
  std::string shown(std::string_view text) const {
    std::string out;
    std::size_t begin = 0;
    for (std::size_t at = 0; colours_ && (at = text.find('\x1b', at)) != std::string_view::npos;) {
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

  std::streambuf* target_;
  bool colours_;
  std::string waiting_;
};

PlainOutput::PlainOutput(std::ostream& stream, bool colours)
    : stream_(stream), filter_(std::make_unique<Filter>(stream.rdbuf(), colours)) {
  // rdbuf() clears the state, and a stream that failed has failed.
  const auto state = stream_.rdstate();
  stream_.rdbuf(filter_.get());
  stream_.setstate(state);
}

PlainOutput::~PlainOutput() {
  stream_.flush();
  const auto state = stream_.rdstate();
  stream_.rdbuf(filter_->target());
  stream_.setstate(state);
}

}  // namespace moescope
