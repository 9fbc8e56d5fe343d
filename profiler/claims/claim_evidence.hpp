#pragma once

#include <initializer_list>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "profiler/claims/claims.hpp"

/// How a line of the claims table comes from recordings. Not for use outside profiler/report/claim*.cpp.
namespace moescope::detail {

/// How a figure is held against the paper's: claim_rules().
enum class Rule : std::uint8_t {
  kAtLeast,  ///< a ratio of cost
  kAbout,    ///< a ratio near 1
  kTime,     ///< seconds, of an A100
  kShare,
  kNone
};

struct Claim {
  std::string name;
  Rule rule = Rule::kAtLeast;
  std::optional<double> paper;
  std::string needs;  ///< what is missing, where it is
};

/// A figure with the recordings that it was formed from.
struct Statement {
  double ours = 0;
  std::string what;
  std::vector<const Recording*> from;
  bool complete = true;
};

/// The recordings of one device, and what may be said of a claim by them.
class ClaimEvidence {
 public:
  /// All must live on.
  ClaimEvidence(std::string_view device, std::span<const Recording* const> recordings,
                const RecordingNames& names)
      : device_(device), recordings_(recordings), names_(names) {}

  std::span<const Recording* const> recordings() const { return recordings_; }
  /// The newest complete statement, the worst, and the recordings passed over: of those that match `layers`.
  ClaimResult settle(const Claim& claim, std::span<const Statement> statements,
                     std::initializer_list<WantedLayer> layers) const;
  /// Every pair's ratio, settled.
  ClaimResult ratio(const Claim& claim, const RatioSide& above, const RatioSide& below) const;
  /// Share of a stage in the layer, over every recorded Table A shape of L >= 1024; ours is that of the
  /// paper's comparison where it is recorded, else the largest.
  ClaimResult share(const Claim& claim, Stage stage, std::string_view schedule) const;

 private:
  std::set<std::string> names_of(std::span<const Recording* const> recordings) const;
  std::string names(std::span<const Recording* const> recordings) const {
    return joined_names(names_of(recordings));
  }
  void name_sources(ClaimResult& result, std::span<const Recording* const> used,
                    std::span<const Recording* const> able, std::initializer_list<WantedLayer> layers) const;

  std::string_view device_;
  std::span<const Recording* const> recordings_;
  const RecordingNames& names_;
};

}  // namespace moescope::detail
