#include "profiler/page/html_summary.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <span>

#include "core/layer/stage.hpp"
#include "core/schedule/schedule_info.hpp"
#include "profiler/report/layer_names.hpp"
#include "profiler/study/sampling.hpp"
#include "profiler/text/format.hpp"
#include "profiler/text/html_text.hpp"

namespace moescope {
namespace {

/// A schedule's time of the layer.
struct Timed {
  std::string name;
  double time_s = 0;
  double spread = 0;
};

/// One layer's times, the fastest first.
struct Race {
  const RecordedLayer* layer = nullptr;
  std::vector<Timed> times;
  bool modelled = false;

  double lead() const { return times[1].time_s / times[0].time_s; }
  /// Whether samples of the first two do not meet.
  bool is_clear() const {
    return times[1].time_s - times[0].time_s >
           0.5 * (times[0].spread * times[0].time_s + times[1].spread * times[1].time_s);
  }
};

/// Whether a time comes from a model.
bool is_modelled(const ResultRow& time) { return time.source == Source::kModelled; }

/// A choice of auto or a tuned schedule is one of the others again.
bool is_choice(const std::string& schedule) { return schedule == "auto" || schedule == "tuned"; }

std::optional<Race> race_of(const RecordedLayer& layer) {
  Race race{&layer, {}};
  bool measured = false;  // then a model's time runs in no race with it
  for (const RecordedSchedule& schedule : layer.schedules) {
    const ResultRow* row = schedule.find(Stage::kLayer, "time_s");
    measured = measured || (row != nullptr && row->status == Status::kOk && !is_modelled(*row));
  }
  for (const RecordedSchedule& schedule : layer.schedules) {
    const ResultRow* row = schedule.find(Stage::kLayer, "time_s");
    if (row != nullptr && row->status == Status::kOk && *row->value > 0 && !is_choice(schedule.name) &&
        !(measured && is_modelled(*row))) {
      race.modelled = !measured;
      race.times.push_back({schedule.name, *row->value, row->spread.value_or(0)});
    }
  }
  std::ranges::stable_sort(race.times, {}, &Timed::time_s);
  return race.times.size() < 2 ? std::nullopt : std::optional(std::move(race));
}

/// What a schedule did over all races it was in.
struct Record {
  std::size_t races = 0;
  std::size_t wins = 0;
  std::vector<double> over_fastest;
};

std::string swatch(const std::string& schedule) {
  const ScheduleInfo* info = find_schedule_info(schedule);
  return info == nullptr ? "" : fmt::format("<span class=s style=\"background:{}\"></span>", info->colour);
}

std::string schedules_table(const std::map<std::string, Record>& records) {
  std::vector<std::pair<std::string, Record>> sorted(records.begin(), records.end());
  std::ranges::stable_sort(sorted, std::greater<>(), [](const auto& entry) { return entry.second.wins; });
  std::string html =
      "<table class=sortable><thead><tr><th scope=col class=t>schedule</th><th scope=col>fastest on</th><th "
      "scope=col>of layers</th><th scope=col>time over the fastest: median</th><th "
      "scope=col>worst</th></tr></thead>\n<tbody>\n";
  for (const auto& [name, record] : sorted) {
    html +=
        fmt::format("<tr><td class=t>{}{}</td><td>{}</td><td>{}</td><td>{:.2f}x</td><td>{:.2f}x</td></tr>\n",
                    swatch(name), html_text(name), record.wins, record.races, median(record.over_fastest),
                    std::ranges::max(record.over_fastest));
  }
  return html + "</tbody></table>\n";
}

/// Which schedule is the fastest most often, by the number of tokens: what decides most.
std::string tokens_table(std::span<const Race> races) {
  std::map<std::int64_t, std::map<std::string, std::size_t>> wins;
  for (const Race& race : races) {
    ++wins[race.layer->what.num_tokens][race.times[0].name];
  }
  if (wins.size() < 2) {
    return "";
  }
  std::string html =
      "<table class=sortable><thead><tr><th scope=col>tokens L</th><th scope=col class=t>fastest most "
      "often</th><th scope=col>on</th><th scope=col>of layers</th></tr></thead>\n<tbody>\n";
  for (const auto& [tokens, names] : wins) {
    const auto best = std::ranges::max_element(names, {}, [](const auto& entry) { return entry.second; });
    std::size_t layers = 0;
    for (const auto& [name, count] : names) {
      layers += count;
    }
    html += fmt::format("<tr><td>{}</td><td class=t>{}{}</td><td>{}</td><td>{}</td></tr>\n", tokens,
                        swatch(best->first), html_text(best->first), best->second, layers);
  }
  return html + "</tbody></table>\n";
}

std::string layers_table(std::span<const Race> races) {
  std::string html = fmt::format(
      "<details><summary>every layer: {}</summary>\n<table class=sortable><thead><tr><th scope=col "
      "class=t>workload</th><th scope=col class=t>layer</th><th scope=col class=t>fastest</th><th "
      "scope=col>time</th><th scope=col class=t>next</th><th scope=col>by</th><th scope=col class=t>more "
      "than "
      "the noise</th></tr></thead>\n<tbody>\n",
      races.size());
  for (const Race& race : races) {
    html += fmt::format(
        "<tr><td class=t>{}</td><td class=t>{}</td><td class=t>{}{}</td><td data-value=\"{:.9g}\">{}</td><td "
        "class=t>{}{}</td><td>{:.2f}x</td><td class=t>{}</td></tr>\n",
        html_text(short_workload(race.layer->what.workload)), html_text(race.layer->shape_text()),
        swatch(race.times[0].name), html_text(race.times[0].name), race.times[0].time_s,
        format_seconds(race.times[0].time_s), swatch(race.times[1].name), html_text(race.times[1].name),
        race.lead(), race.is_clear() ? "yes" : "no");
  }
  return html + "</tbody></table></details>\n";
}

/// Of one device (or modelled device).
void add_device(HtmlSummary& summary, const std::string& device, std::span<const Race> races) {
  std::map<std::string, Record> records;
  std::vector<double> leads;
  std::size_t unclear = 0;
  for (const Race& race : races) {
    for (const Timed& timed : race.times) {
      Record& record = records[timed.name];
      ++record.races;
      record.over_fastest.push_back(timed.time_s / race.times[0].time_s);
    }
    ++records[race.times[0].name].wins;
    leads.push_back(race.lead());
    unclear += race.is_clear() ? 0 : 1;
  }
  std::vector<std::pair<std::string, std::size_t>> winners;
  for (const auto& [name, record] : records) {
    if (record.wins > 0) {
      winners.emplace_back(html_text(name), record.wins);
    }
  }
  std::ranges::stable_sort(winners, std::greater<>(), [](const auto& entry) { return entry.second; });
  std::vector<std::string> words;
  for (const auto& [name, wins] : winners) {
    words.push_back(fmt::format("{} on {}", name, wins));
  }
  std::string& text = summary.conclusions;
  const bool nothing_told = unclear == races.size();
  text += nothing_told ? fmt::format("<p><b>{}: no schedule is the fastest beyond the noise{}.</b> ",
                                     html_text(device), races.size() == 1 ? "" : " on any layer")
          : races.size() == 1
              ? fmt::format("<p><b>{}: the fastest is {}.</b> ", html_text(device), winners.front().first)
              : fmt::format("<p><b>{}: the fastest of {} layers: {}.</b> ", html_text(device), races.size(),
                            fmt::join(words, ", "));
  if (nothing_told) {
    text += fmt::format(
        "The shortest times lead the next ones by {:.2f}x (median; at most {:.2f}x), on each of {} layer{} "
        "within the spread of the two.</p>\n",
        median(leads), std::ranges::max(leads), races.size(), races.size() == 1 ? "" : "s");
  } else if (races.size() == 1) {
    text += fmt::format("It leads the next one by {:.2f}x: {} the noise.</p>\n", leads[0],
                        unclear == 0 ? "more than" : "within");
  } else {
    text += fmt::format("The fastest schedule leads the next one by {:.2f}x (median; at most {:.2f}x).",
                        median(leads), std::ranges::max(leads));
    text += unclear == 0 ? " Every lead is more than the noise.</p>\n"
                         : fmt::format(" On {} of them the lead is within the noise.</p>\n", unclear);
  }
  summary.details += fmt::format("<h3>{}</h3>\n", html_text(device)) + tokens_table(races) +
                     schedules_table(records) + layers_table(races);
}

}  // namespace

HtmlSummary html_summary(const std::vector<RecordedLayer>& layers) {
  std::vector<std::pair<std::string, std::vector<Race>>> devices;
  for (const RecordedLayer& layer : layers) {
    auto race = race_of(layer);
    if (!race || layer.what.system != "omnimoe") {
      continue;
    }
    const std::string device = layer.what.backend.starts_with("sim") ? layer.what.backend
                               : race->modelled ? fmt::format("{} (modelled)", layer.what.backend)
                               : layer.what.backend == "cpu" ? layer.header->device
                               : layer.what.backend == "cuda"
                                   ? layer.header->device
                                   : fmt::format("{} by {}", layer.header->device, layer.what.backend);
    auto found = std::ranges::find(devices, device, [](const auto& entry) { return entry.first; });
    if (found == devices.end()) {
      found = devices.insert(found, {device, {}});
    }
    found->second.push_back(*std::move(race));
  }
  HtmlSummary summary;
  for (const auto& [device, races] : devices) {
    add_device(summary, device, races);
  }
  return summary;
}

}  // namespace moescope
