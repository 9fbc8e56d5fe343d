#include "profiler/cluster/rank_timeline.hpp"

#include <algorithm>
#include <tuple>

namespace moescope {
namespace {

double latest(const std::vector<double>& times) { return times.empty() ? 0 : std::ranges::max(times); }

class Player {
 public:
  Player(const RankTimes& times, Exchange exchange, bool overlap)
      : times_(times),
        gather_(exchange == Exchange::kGather),
        overlap_(overlap),
        chunks_(static_cast<std::int64_t>(times.experts_s.size())),
        free_(times.router_s.size(), 0) {}

  RankTimeline play() {
    std::vector<double> arrived(static_cast<std::size_t>(chunks_));
    run_all(Stage::kRouterSelect, 0, times_.router_s);
    const double routed_s = latest(free_);
    std::int64_t sent = 0;
    const auto send_rows = [&](double ready_s) {
      arrived[at(sent)] = exchange(Stage::kTokenDispatch, sent, ready_s, times_.rows_s[at(sent)]);
      ++sent;
    };
    if (gather_) {
      while (overlap_ && sent < chunks_ && network_s_ < routed_s) {
        send_rows(0);
      }
      const double pairs_end = exchange(Stage::kTokenDispatch, 0, routed_s, times_.pairs_s);
      for (double& time : arrived) {
        time = std::max(time, pairs_end);
      }
    }
    while (sent < chunks_) {
      send_rows(routed_s);
    }
    if (!overlap_) {  // nothing begins before all is there
      std::ranges::fill(arrived, latest(arrived));
    }
    std::vector<double> computed(static_cast<std::size_t>(chunks_));
    for (std::int64_t chunk = 0; chunk < chunks_; ++chunk) {
      for (double& time : free_) {
        time = std::max(time, arrived[at(chunk)]);
      }
      run_all(Stage::kExperts, chunk, times_.experts_s[at(chunk)]);
      computed[at(chunk)] = latest(free_);
    }
    if (overlap_) {
      run_all(Stage::kSharedMlp, 0, times_.shared_s);
    }
    double returned_s = 0;
    for (std::int64_t chunk = 0; chunk < chunks_; ++chunk) {
      const double ready_s = overlap_ ? computed[at(chunk)] : computed.back();
      returned_s = exchange(Stage::kTokenCombine, chunk, ready_s, times_.returns_s[at(chunk)]);
    }
    for (double& time : free_) {
      time = std::max(time, returned_s);
    }
    run_all(Stage::kTokenCombine, 0, times_.sum_s);
    if (!overlap_) {
      run_all(Stage::kSharedMlp, 0, times_.shared_s);
    }
    timeline_.rank_s = free_;
    timeline_.layer_s = latest(free_);
    std::ranges::stable_sort(timeline_.events, {},
                             [](const RankEvent& e) { return std::tuple(e.begin_s, e.rank); });
    return std::move(timeline_);
  }

 private:
  static std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

  double exchange(Stage stage, std::int64_t chunk, double ready_s, double time_s) {
    const double begin = std::max(ready_s, network_s_);
    network_s_ = begin + time_s;
    if (time_s > 0) {
      timeline_.events.push_back({-1, stage, chunk, begin, network_s_});
    }
    return network_s_;
  }

  void run_all(Stage stage, std::int64_t chunk, const std::vector<double>& times) {
    for (std::size_t rank = 0; rank < free_.size(); ++rank) {
      if (times[rank] > 0) {
        timeline_.events.push_back(
            {static_cast<std::int64_t>(rank), stage, chunk, free_[rank], free_[rank] + times[rank]});
      }
      free_[rank] += times[rank];
    }
  }

  const RankTimes& times_;
  bool gather_;
  bool overlap_;
  std::int64_t chunks_;
  std::vector<double> free_;  ///< [P] when each rank can go on
  double network_s_ = 0;
  RankTimeline timeline_;
};

}  // namespace

RankTimeline play(const RankTimes& times, Exchange exchange, bool overlap) {
  return Player(times, exchange, overlap).play();
}

RankTimes without_exchanges(RankTimes times) {
  times.pairs_s = 0;
  std::ranges::fill(times.rows_s, 0);
  std::ranges::fill(times.returns_s, 0);
  return times;
}

}  // namespace moescope
