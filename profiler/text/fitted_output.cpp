#include "profiler/text/fitted_output.hpp"

#include <streambuf>
#include <string>
#include <string_view>

#include "profiler/text/wrap.hpp"

namespace moescope {
namespace {

/// Where a stream counts the Verbatim objects that live.
int verbatim_index() {
  static const int index = std::ios_base::xalloc();
  return index;
}

}  // namespace

class FittedOutput::Filter : public std::streambuf {
 public:
  Filter(std::ostream& stream, std::size_t width) : stream_(stream), target_(stream.rdbuf()), width_(width) {}
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
    const bool as_is = stream_.iword(verbatim_index()) > 0;
    const std::string text = fitted(std::string_view(waiting_).substr(0, size), as_is ? 0 : width_);
    waiting_.erase(0, size);
    const auto length = static_cast<std::streamsize>(text.size());
    return target_->sputn(text.data(), length) == length;
  }

  std::ostream& stream_;
  std::streambuf* target_;
  std::size_t width_;
  std::string waiting_;
};

FittedOutput::FittedOutput(std::ostream& stream, std::size_t width)
    : stream_(stream), filter_(std::make_unique<Filter>(stream, width)), flags_(stream.flags()) {
  // rdbuf() clears the state, and a stream that failed has failed.
  const auto state = stream_.rdstate();
  stream_.rdbuf(filter_.get());
  stream_.setstate(state);
  stream_.unsetf(std::ios_base::unitbuf);
}

FittedOutput::~FittedOutput() {
  stream_.flush();
  const auto state = stream_.rdstate();
  stream_.rdbuf(filter_->target());
  stream_.setstate(state);
  stream_.setf(flags_ & std::ios_base::unitbuf);
}

Verbatim::Verbatim(std::ostream& stream) : stream_(stream) { ++stream_.iword(verbatim_index()); }
Verbatim::~Verbatim() { --stream_.iword(verbatim_index()); }

}  // namespace moescope
