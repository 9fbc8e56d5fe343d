#include "profiler/simulator/sim_replay.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <exception>
#include <numeric>
#include <queue>
#include <utility>

#include "core/tiling/tile_config.hpp"

namespace moescope {
namespace {

/// Bytes that a block asks for before another's turn comes: about what one has in flight.
constexpr std::uint64_t kTurnBytes = 4096;

/// What one slot could move and compute per second when all slots are busy.
struct SlotRates {
  double l2_bytes_per_s;
  double l1_bytes_per_s;
  double reduce_bytes_per_s;
  double tensor_flop_per_s;
  double fp32_flop_per_s;
  double instructions_per_s;
  double received_bytes_per_s;
  double clock_hz;

  SlotRates(const DeviceSpec& device, std::int64_t slots) {
    const auto all = static_cast<double>(slots);
    const auto per_sm = static_cast<double>(ceil_div(slots, device.num_sms));
    const auto sms = static_cast<double>(device.num_sms);
    l2_bytes_per_s =
        std::min(device.l2_bytes_per_s / all, device.sm_l2_bytes_per_clock * device.sm_clock_hz / per_sm);
    l1_bytes_per_s = device.l1_bytes_per_clock * device.sm_clock_hz / per_sm;
    reduce_bytes_per_s = device.l2_reduce_bytes_per_s / all;
    tensor_flop_per_s = device.tensor_bf16_flop_per_s / sms / per_sm;
    fp32_flop_per_s = device.fp32_flop_per_s / sms / per_sm;
    received_bytes_per_s = device.sm_l2_bytes_per_clock * device.sm_clock_hz / per_sm;
    clock_hz = device.sm_clock_hz;
    instructions_per_s = device.issue_per_clock * device.sm_clock_hz / per_sm;
  }

  /// The slower of moving and computing; both go on at once. Reads through L1 are taken as hits here: whether
  /// they are is for the caches to say, and the order of units must not depend on it.
  double seconds(const WorkUnit& unit) const {
    double cached = 0;
    double moved = 0;
    double reduced = 0;
    for (const Burst& burst : unit.bursts) {
      const double bytes = static_cast<double>(burst.bytes) * burst.rows;
      (burst.kind == AccessKind::kReadCached                                 ? cached
       : burst.kind == AccessKind::kRead || burst.kind == AccessKind::kWrite ? moved
                                                                             : reduced) += bytes;
    }
    const double memory_s = cached / l1_bytes_per_s + moved / l2_bytes_per_s + reduced / reduce_bytes_per_s;
    return std::max({memory_s, unit.tensor_flop / tensor_flop_per_s, unit.cuda_core_flop / fp32_flop_per_s,
                     unit.instructions / instructions_per_s, unit.clocks / clock_hz,
                     (moved + unit.multicast_bytes) / received_bytes_per_s});
  }
};

std::uint64_t bytes_of(const WorkUnit& unit) {
  std::uint64_t bytes = 0;
  for (const Burst& burst : unit.bursts) {
    bytes += std::uint64_t{burst.bytes} * burst.rows;
  }
  return bytes;
}

/// A place for a block and the unit it works on.
struct Slot {
  WorkUnit unit;
  std::size_t burst = 0;
  std::uint32_t row = 0;
  double start_s = 0;
  double length_s = 0;
  double steps = 0;  ///< dependent trips of all its units so far
  double chain_steps = 0;
  std::uint64_t total_bytes = 0;
  std::uint64_t done_bytes = 0;

  double now_s() const {
    return total_bytes == 0
               ? start_s
               : start_s + length_s * static_cast<double>(done_bytes) / static_cast<double>(total_bytes);
  }
};

/// One launch through one part of the memory. Blocks advance in simulated time, each at the pace its unit's
/// work sets, so that all parts and threads see the same order.
class LaunchPlayer {
 public:
  LaunchPlayer(const KernelLaunch& launch, const DeviceSpec& device, MemoryModel& memory)
      : launch_(launch),
        memory_(memory),
        num_sms_(device.num_sms),
        slots_(static_cast<std::size_t>(
            std::max<std::int64_t>(std::min(launch.units, device.num_sms * launch.blocks_per_sm), 1))),
        rates_(device, static_cast<std::int64_t>(slots_.size())) {}

  void play(LaunchReplay& result, const std::function<void()>& unit_done) {
    memory_.begin_kernel(launch_.code_bytes);
    using Turn = std::pair<double, std::size_t>;  // ties: the lower slot
    std::priority_queue<Turn, std::vector<Turn>, std::greater<>> turns;
    std::int64_t next = 0;
    for (std::size_t s = 0; s < slots_.size() && next < launch_.units; ++s) {
      begin(slots_[s], next++, 0, result);
      turns.emplace(0.0, s);
    }
    double last_s = 0;
    double work_s = 0;
    std::vector<double> of_sm(static_cast<std::size_t>(num_sms_), 0.0);
    bool has_pace = false;
    while (!turns.empty()) {
      const std::size_t s = turns.top().second;
      turns.pop();
      Slot& slot = slots_[s];
      advance(slot, static_cast<std::int64_t>(s) % num_sms_);
      if (slot.burst < slot.unit.bursts.size()) {
        turns.emplace(slot.now_s(), s);
        continue;
      }
      const double end_s = slot.start_s + slot.length_s;
      last_s = std::max(last_s, end_s);
      work_s += slot.length_s;
      of_sm[s % of_sm.size()] += slot.length_s;
      has_pace = has_pace || slot.unit.clocks > 0;
      unit_done();
      if (next < launch_.units) {
        begin(slot, next++, end_s, result);
        turns.emplace(end_s, s);
      }
    }
    result.slots = static_cast<std::int64_t>(slots_.size());
    // Blocks of a multiprocessor share its rates: the last of them go faster when others have ended, unless
    // they have a pace of their own.
    const double per_sm = static_cast<double>(ceil_div(result.slots, num_sms_));
    result.makespan_s = has_pace ? last_s : *std::ranges::max_element(of_sm) / per_sm;
    result.balanced_s = work_s / static_cast<double>(slots_.size());
  }

 private:
  void begin(Slot& slot, std::int64_t unit, double now_s, LaunchReplay& result) {
    launch_.fill(unit, slot.unit);
    slot.burst = 0;
    slot.row = 0;
    slot.start_s = now_s;
    slot.length_s = rates_.seconds(slot.unit);
    slot.total_bytes = bytes_of(slot.unit);
    slot.done_bytes = 0;
    slot.steps += slot.unit.dependent_steps;
    result.dependent_steps = std::max(result.dependent_steps, slot.steps);
    slot.chain_steps += slot.unit.chain_steps;
    result.chain_steps = std::max(result.chain_steps, slot.chain_steps);
    result.tensor_flop += slot.unit.tensor_flop;
    result.cuda_core_flop += slot.unit.cuda_core_flop;
    result.instructions += slot.unit.instructions;
    result.multicast_bytes += slot.unit.multicast_bytes;
  }

  void advance(Slot& slot, std::int64_t sm) {
    const std::uint64_t stop = slot.done_bytes + kTurnBytes;
    while (slot.done_bytes < stop && slot.burst < slot.unit.bursts.size()) {
      const Burst& burst = slot.unit.bursts[slot.burst];
      memory_.access(sm, burst.address + slot.row * burst.pitch_bytes, burst.bytes, burst.kind);
      slot.done_bytes += burst.bytes;
      if (++slot.row >= burst.rows) {
        slot.row = 0;
        ++slot.burst;
      }
    }
  }

  const KernelLaunch& launch_;
  MemoryModel& memory_;
  std::int64_t num_sms_;
  std::vector<Slot> slots_;
  SlotRates rates_;
};

/// Lines of all launches, from every n-th unit.
double estimate_accesses(std::span<const KernelLaunch> launches) {
  constexpr std::int64_t kProbes = 64;
  double lines = 0;
  WorkUnit unit;
  for (const KernelLaunch& launch : launches) {
    const std::int64_t step = ceil_div(std::max<std::int64_t>(launch.units, 1), kProbes);
    double probed = 0;
    std::int64_t probes = 0;
    for (std::int64_t u = 0; u < launch.units; u += step, ++probes) {
      launch.fill(u, unit);
      for (const Burst& burst : unit.bursts) {
        probed += static_cast<double>(burst.rows) * static_cast<double>(ceil_div(burst.bytes, kLineBytes));
      }
    }
    lines += probes == 0 ? 0 : probed * static_cast<double>(launch.units) / static_cast<double>(probes);
  }
  return lines;
}

/// Every 64/count-th class.
std::vector<unsigned> choose_classes(double accesses, const ReplayOptions& options,
                                     const MemoryGeometry& geometry) {
  unsigned count = kMaxClasses;
  while (geometry.can_sample() && count > 4 &&
         accesses * count / kMaxClasses > static_cast<double>(options.max_accesses)) {
    count /= 2;
  }
  std::vector<unsigned> classes;
  for (unsigned c = 0; c < kMaxClasses; c += kMaxClasses / count) {
    classes.push_back(c);
  }
  return classes;
}

/// Counters of each class after each launch.
using ClassHistory = std::vector<std::vector<MemoryCounters>>;

void play_all(std::span<const KernelLaunch> launches, const DeviceSpec& device, double cold_dirty_fraction,
              std::span<const unsigned> classes, std::vector<LaunchReplay>& results, ClassHistory& history,
              const std::function<void()>& unit_done) {
  MemoryModel memory(device.memory(), classes);
  memory.leave_dirty(static_cast<std::int64_t>(cold_dirty_fraction * static_cast<double>(device.l2_bytes)));
  for (std::size_t l = 0; l < launches.size(); ++l) {
    LaunchPlayer(launches[l], device, memory).play(results[l], unit_done);
    history.push_back(memory.counters());
  }
}

void scale_up(LaunchReplay& result, std::span<const MemoryCounters> of_classes) {
  MemoryCounters sum;
  for (const MemoryCounters& one : of_classes) {
    sum += one;
  }
  const auto count = static_cast<double>(of_classes.size());
  const double scale = static_cast<double>(kSectorBytes * kMaxClasses) / count;
  result.l1_read_bytes = scale * static_cast<double>(sum.l1_read);
  result.l1_hit_bytes = scale * static_cast<double>(sum.l1_hit);
  result.l2_read_bytes = scale * static_cast<double>(sum.l2_read);
  result.l2_hit_bytes = scale * static_cast<double>(sum.l2_hit);
  result.l2_write_bytes = scale * static_cast<double>(sum.l2_write);
  result.l2_partial_bytes = scale * static_cast<double>(sum.l2_partial);
  result.l2_reduce_bytes = scale * static_cast<double>(sum.l2_reduce);
  result.link_bytes = scale * static_cast<double>(sum.link);
  result.hbm_read_bytes = scale * static_cast<double>(sum.hbm_read);
  result.hbm_write_bytes = scale * static_cast<double>(sum.hbm_write);
  result.of_classes.assign(of_classes.begin(), of_classes.end());
}

}  // namespace

std::optional<double> LaunchReplay::sampling_error(std::span<const MemoryCount> counts) const {
  if (of_classes.size() >= kMaxClasses) {
    return 0;
  }
  std::vector<double> values;
  for (const MemoryCounters& one : of_classes) {
    double value = 0;
    for (const MemoryCount count : counts) {
      value += static_cast<double>(one.*count);
    }
    values.push_back(value);
  }
  const auto n = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  if (!(mean > 0)) {  // of no classes, too
    return std::nullopt;
  }
  double squares = 0;
  for (const double value : values) {
    squares += (value - mean) * (value - mean);
  }
  // Standard error of a mean drawn without replacement from 64 classes.
  return std::sqrt(squares / (n - 1) / n * (1 - n / kMaxClasses)) / mean;
}

std::optional<double> LaunchReplay::hbm_sampling_error() const {
  static constexpr std::array kBoth = {&MemoryCounters::hbm_read, &MemoryCounters::hbm_write};
  return sampling_error(kBoth);
}

Replay replay(std::span<const KernelLaunch> launches, const DeviceSpec& device,
              const ReplayOptions& options) {
  const std::vector<unsigned> classes = choose_classes(estimate_accesses(launches), options, device.memory());
  const std::size_t parts =
      std::clamp<std::size_t>(static_cast<std::size_t>(std::max(options.threads, 1)), 1, classes.size());
  std::vector<LaunchReplay> initial(launches.size());
  std::int64_t units = 0;
  for (std::size_t l = 0; l < launches.size(); ++l) {
    initial[l].stage = launches[l].stage;
    initial[l].name = launches[l].name;
    initial[l].overlap = launches[l].overlap;
    initial[l].dependent = launches[l].dependent;
    initial[l].units = launches[l].units;
    units += launches[l].units;
  }
  std::vector<std::vector<LaunchReplay>> results(parts, initial);
  std::vector<ClassHistory> histories(parts);
  std::vector<std::exception_ptr> failures(parts);
  const std::int64_t report_every = std::max<std::int64_t>(units / 100, 1);
#pragma omp parallel for num_threads(static_cast <int>(parts)) schedule(static, 1)
  for (std::size_t part = 0; part < parts; ++part) {
    try {
      const std::size_t begin = classes.size() * part / parts;
      const std::size_t end = classes.size() * (part + 1) / parts;
      std::int64_t done = 0;
      const auto unit_done = [&] {
        if (part == 0 && options.progress && ++done % report_every == 0) {
          options.progress(static_cast<double>(done) / static_cast<double>(units));
        }
      };
      play_all(launches, device, options.cold_dirty_fraction, std::span(classes).subspan(begin, end - begin),
               results[part], histories[part], unit_done);
    } catch (...) {
      failures[part] = std::current_exception();
    }
  }
  for (const std::exception_ptr& failure : failures) {
    if (failure) {
      std::rethrow_exception(failure);
    }
  }
  Replay replay{std::move(results[0]), static_cast<unsigned>(classes.size())};
  std::vector<MemoryCounters> before(classes.size());
  for (std::size_t l = 0; l < launches.size(); ++l) {
    std::vector<MemoryCounters> after;
    for (const ClassHistory& history : histories) {
      after.insert(after.end(), history[l].begin(), history[l].end());
    }
    std::vector<MemoryCounters> during(after.size());
    std::ranges::transform(after, before, during.begin(), std::minus<>());
    scale_up(replay.launches[l], during);
    before = std::move(after);
  }
  return replay;
}

}  // namespace moescope
