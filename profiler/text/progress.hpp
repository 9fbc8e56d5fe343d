#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <string>
#include <string_view>

namespace moescope {

/// True when standard error is a terminal.
bool stderr_is_terminal();

/// Characters in a line of the terminal that standard error is; 80 where it does not say.
std::size_t stderr_columns();

/// Tells how far long work is and how long the rest may take. On a terminal one line is rewritten in place
/// and wiped at the end; elsewhere every step is a line of its own.
class Progress {
 public:
  enum class Style : std::uint8_t { kTerminal, kLines, kSilent };

  /// `total` steps of about equal length; `now_s` is a monotonic clock in seconds, `columns` the width of the
  /// terminal now, which no line passes: one that wraps could not be rewritten. `out` must outlive this.
  Progress(std::ostream& out, Style style, std::int64_t total, std::function<double()> now_s,
           std::function<std::size_t()> columns = stderr_columns);
  /// On steady_clock.
  Progress(std::ostream& out, Style style, std::int64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  Progress(Progress&&) = delete;
  Progress& operator=(Progress&&) = delete;

  /// Says what the next step is: "[3/24] zipf:1, about 12 s left".
  void begin(std::string_view step);
  /// Updates what the current step is doing (terminal only).
  void detail(std::string_view text);
  /// The current step is done.
  void advance();
  /// Wipes what a terminal shows, before other output; the destructor does it too.
  void finish();

  /// Expected seconds left from the mean length of the steps done; negative before the first is done.
  double left_s() const;

 private:
  void show(std::string_view text);
  /// Characters that fit a line of the terminal.
  std::size_t room() const;

  std::ostream& out_;
  Style style_;
  std::int64_t total_;
  std::int64_t done_ = 0;
  std::function<double()> now_s_;
  std::function<std::size_t()> columns_;
  double start_s_;
  double step_start_s_;
  std::string step_;
  std::size_t shown_width_ = 0;
};

}  // namespace moescope
