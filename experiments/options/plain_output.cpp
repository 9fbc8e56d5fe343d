#include "experiments/options/plain_output.hpp"

#include <streambuf>
#include <string>
#include <string_view>

#include "core/base/line_text.hpp"

namespace moescope {

class PlainOutput::Filter : public std::streambuf {
 public:
  explicit Filter(std::streambuf* target) : target_(target) {}
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
    const std::string text = plain_lines(std::string_view(waiting_).substr(0, size));
    waiting_.erase(0, size);
    const auto length = static_cast<std::streamsize>(text.size());
    return target_->sputn(text.data(), length) == length;
  }

  std::streambuf* target_;
  std::string waiting_;
};

PlainOutput::PlainOutput(std::ostream& stream)
    : stream_(stream), filter_(std::make_unique<Filter>(stream.rdbuf())) {
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
