#include "profiler/text/line_filter.hpp"

#include <streambuf>
#include <utility>

namespace moescope {

class LineFilter::Buffer : public std::streambuf {
 public:
  Buffer(std::streambuf* target, Change change) : target_(target), change_(std::move(change)) {}
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
    const std::string text = change_(std::string_view(waiting_).substr(0, size));
    waiting_.erase(0, size);
    const auto length = static_cast<std::streamsize>(text.size());
    return target_->sputn(text.data(), length) == length;
  }

  std::streambuf* target_;
  Change change_;
  std::string waiting_;
};

LineFilter::LineFilter(std::ostream& stream, Change change)
    : stream_(stream), buffer_(std::make_unique<Buffer>(stream.rdbuf(), std::move(change))) {
  use(buffer_.get());
}

LineFilter::~LineFilter() {
  stream_.flush();
  use(buffer_->target());
}

/// rdbuf() clears the state, and a stream that failed has failed.
void LineFilter::use(std::streambuf* buffer) {
  const auto state = stream_.rdstate();
  stream_.rdbuf(buffer);
  stream_.setstate(state);
}

}  // namespace moescope
