#include <fmt/format.h>

#include "core/base/line_text.hpp"
#include "profiler/claims/claims.hpp"
#include "profiler/text/format.hpp"
#include "profiler/text/table.hpp"
#include "profiler/text/wrap.hpp"

namespace moescope {
namespace {

constexpr std::size_t kClaimWidth = 38;

std::string figure_text(ClaimUnit unit, double value) {
  return unit == ClaimUnit::kShare     ? format_percent(value)
         : unit == ClaimUnit::kSeconds ? format_seconds(value)
                                       : fmt::format("{:.3g}x", value);
}

std::string figure_text(ClaimUnit unit, std::optional<double> value) {
  return value ? figure_text(unit, *value) : "-";
}

std::string paper_text(const ClaimResult& claim) {
  return (claim.paper && claim.unit == ClaimUnit::kShare ? "<= " : "") + figure_text(claim.unit, claim.paper);
}

std::string ratio_text(const ClaimResult& claim) {
  if (!claim.ours || !claim.paper) {
    return "-";
  }
  const double ratio = *claim.ours / *claim.paper;
  return ratio < 0.01 ? fmt::format("{:.1g}", ratio) : fmt::format("{:.2f}", ratio);
}

std::string device_text(const DeviceClaims& device) {
  return device.device.empty() ? "no measured rows" : device.device;
}

std::string started_text(const NamedRecording& recording) {
  return recording.started_utc.empty() ? "does not say when" : recording.started_utc;
}

Table terminal_table(const DeviceClaims& device) {
  Table table({{"claim", Align::kLeft}, {"paper"}, {"ours"}, {"verdict", Align::kLeft}});
  for (const ClaimResult& claim : device.claims) {
    const std::vector<std::string> lines = wrapped(claim.claim, kClaimWidth, "  ");
    table.add_row({lines[0], paper_text(claim), figure_text(claim.unit, claim.ours),
                   std::string(to_string(claim.verdict))});
    for (std::size_t l = 1; l < lines.size(); ++l) {
      table.add_row({lines[l], "", "", ""});
    }
    if (claim.worst && *claim.worst != *claim.ours) {
      table.add_row({"  the worst recording", "", figure_text(claim.unit, claim.worst),
                     std::string(to_string(claim.worst_verdict))});
    }
  }
  return table;
}

}  // namespace

std::string_view to_string(ClaimVerdict verdict) {
  switch (verdict) {
    case ClaimVerdict::kHolds:
      return "holds";
    case ClaimVerdict::kHoldsWithConditions:
      return "holds with conditions";
    case ClaimVerdict::kDoesNotHold:
      return "does not hold here";
    case ClaimVerdict::kNotClaimed:
      return "not the paper's";
    case ClaimVerdict::kNoRows:
      return "no rows yet";
    case ClaimVerdict::kNotOnThisDevice:
      return "not on this device";
  }
  return "?";
}

std::string_view claim_rules() {
  return "Rules. Rows: measured, status ok, a time above zero, L2 cold, bf16, d = 1024,\n"
         "default group and tile sizes; memory is counted from shapes. Modelled rows never\n"
         "count. A figure is formed from rows of one device, backend and seed (PyTorch\n"
         "draws its own numbers). Ours is of the newest recordings that have what the line\n"
         "needs, the fastest schedule recorded among it: two schedules of a layer from one\n"
         "recording, two layers from the pair whose older recording is newest, of one run\n"
         "where it can be. Newest is by the run's start; without one by the date in its\n"
         "id, else it is the oldest; at one time the greater id is newer, and within a run\n"
         "the worse figure counts. The worst is of all those recordings, or of one that\n"
         "lacks the fastest schedule, where its verdict is worse.\n"
         "A ratio of cost: holds when ours is at least 0.9 of the paper's; with conditions\n"
         "when it is smaller but above 1.1; else it does not hold here. A ratio about 1:\n"
         "holds within 10 %; with conditions on the same side of 1. A share (the paper\n"
         "names none for selection: 5 % as for scheduling): holds when the newest\n"
         "recording of every layer keeps it; with conditions when some do; ours is that at\n"
         "L 4096 K 512 gaussian:1. A time: holds when ours is no longer; with conditions\n"
         "on another device than the paper's A100.\n";
}

std::string claims_text(const std::vector<DeviceClaims>& devices) {
  std::string out;
  for (const DeviceClaims& device : devices) {
    out += one_line(device_text(device)) + "\n\n" + terminal_table(device).text() + '\n';
    for (const ClaimResult& claim : device.claims) {
      const std::string of_paper =
          claim.ours && claim.paper ? fmt::format(" ({} of the paper's)", ratio_text(claim)) : "";
      out += one_line(fmt::format("{}{}: {}", claim.claim, of_paper, claim.why)) + '\n';
    }
    if (!device.recordings.empty()) {
      out += "\nRecordings\n";
    }
    for (const NamedRecording& recording : device.recordings) {
      out += one_line(fmt::format("{}: {}, run {}, started {}, {}", recording.name, recording.file,
                                  recording.run_id, started_text(recording), recording.revision)) +
             '\n';
    }
    out += '\n';
  }
  return out;
}

Table claims_table(const DeviceClaims& device) {
  Table table({{"claim, on " + device_text(device), Align::kLeft},
               {"paper"},
               {"ours"},
               {"ours / paper"},
               {"verdict", Align::kLeft},
               {"worst"},
               {"its verdict", Align::kLeft},
               {"why", Align::kLeft}});
  for (const ClaimResult& claim : device.claims) {
    table.add_row({claim.claim, paper_text(claim), figure_text(claim.unit, claim.ours), ratio_text(claim),
                   to_string(claim.verdict), figure_text(claim.unit, claim.worst),
                   claim.worst ? to_string(claim.worst_verdict) : "-", claim.why});
  }
  return table;
}

std::string claims_markdown(const std::vector<DeviceClaims>& devices) {
  std::string out;
  for (const DeviceClaims& device : devices) {
    out += claims_table(device).markdown() + '\n';
    if (!device.recordings.empty()) {
      Table recordings({{"recording", Align::kLeft},
                        {"file", Align::kLeft},
                        {"run", Align::kLeft},
                        {"started", Align::kLeft},
                        {"revision", Align::kLeft}});
      for (const NamedRecording& recording : device.recordings) {
        recordings.add_row(
            {recording.name, recording.file, recording.run_id, started_text(recording), recording.revision});
      }
      out += "<details><summary>Recordings</summary>\n\n" + recordings.markdown() + "\n</details>\n\n";
    }
  }
  return out;
}

}  // namespace moescope
