#include "profiler/text/progress.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <ostream>
#include <utility>

#include "core/base/line_text.hpp"

namespace moescope {

bool stderr_is_terminal() { return ::isatty(STDERR_FILENO) == 1; }

std::size_t stderr_columns() {
  constexpr std::size_t kUsual = 80;
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : kUsual;
}

Progress::Progress(std::ostream& out, Style style, std::int64_t total, std::function<double()> now_s,
                   std::function<std::size_t()> columns)
    : out_(out),
      style_(style),
      total_(total),
      now_s_(std::move(now_s)),
      columns_(std::move(columns)),
      start_s_(now_s_()),
      step_start_s_(start_s_) {}

Progress::Progress(std::ostream& out, Style style, std::int64_t total)
    : Progress(out, style, total, [] {
        return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
      }) {}

Progress::~Progress() { finish(); }

void Progress::finish() {
  if (style_ == Style::kTerminal && shown_width_ > 0) {
    out_ << '\r' << std::string(std::min(shown_width_, room()), ' ') << '\r' << std::flush;
    shown_width_ = 0;
  }
}

double Progress::left_s() const {
  if (done_ == 0) {
    return -1;
  }
  const double per_step_s = (step_start_s_ - start_s_) / static_cast<double>(done_);
  const double in_step_s = std::min(per_step_s, now_s_() - step_start_s_);
  return std::max(0.0, per_step_s * static_cast<double>(total_ - done_) - in_step_s);
}

std::size_t Progress::room() const {
  // In the last column some terminals wrap at once.
  return std::max<std::size_t>(columns_(), 2) - 1;
}

void Progress::begin(std::string_view step) {
  step_ = step;
  show("");
}

void Progress::detail(std::string_view text) {
  if (style_ == Style::kTerminal) {
    show(text);
  }
}

void Progress::advance() {
  ++done_;
  step_start_s_ = now_s_();
}

void Progress::show(std::string_view text) {
  if (style_ == Style::kSilent) {
    return;
  }
  std::string line = fmt::format("[{}/{}] {}", std::min(done_ + 1, total_), total_, step_);
  if (!text.empty()) {
    line += fmt::format(": {}", text);
  }
  if (const double left = left_s(); left >= 0) {
    line += left < 90 ? fmt::format(", about {:.0f} s left", left)
                      : fmt::format(", about {:.0f} min left", left / 60);
  }
  line = one_line(line);
  if (style_ == Style::kLines) {
    out_ << line << '\n' << std::flush;
    return;
  }
  line = first_characters(line, room());
  const std::size_t width = text_width(line);
  const std::size_t wiped = std::min(shown_width_, room());
  out_ << '\r' << line << std::string(wiped > width ? wiped - width : 0, ' ') << std::flush;
  shown_width_ = width;
}

}  // namespace moescope
