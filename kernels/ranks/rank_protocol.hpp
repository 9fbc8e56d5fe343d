#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "core/base/error.hpp"
#include "core/ranks/rank_transport.hpp"
#include "kernels/ranks/rank_layer.hpp"

/// What rank 0 and the others say to each other, beside tasks (rank_task.hpp).
namespace moescope::cuda {

/// Revision and build: ranks of two programs would not understand each other, or not give the same bits.
std::string rank_identity();

/// Empty, or why this rank lacks memory for a task: "rank 1: layer ... needs ... bytes, ... are free".
std::string missing_memory(const RankTask& task, std::int64_t rank, bool has_weights);

struct RunOrder {
  std::int64_t id = 0;
  L2State l2 = L2State::kCold;
  bool all_stages = true;    ///< a run(); else the layer alone, with
  std::uint32_t silent = 0;  ///< these phases silent
};

/// Does what the order says.
inline std::vector<StageTime> follow(RankLayer& layer, const RunOrder& order) {
  if (order.all_stages) {
    return layer.run(order.l2);
  }
  return std::vector<StageTime>{{Stage::kLayer, layer.run_silent(order.silent, order.l2)}};
}

inline Message body_of(std::int64_t number) {
  Message body(sizeof number);
  std::memcpy(body.data(), &number, sizeof number);
  return body;
}
inline std::int64_t number_in(const Message& body) {
  std::int64_t number = 0;
  if (body.size() != sizeof number) {
    throw InternalError("a message between ranks is cut short");
  }
  std::memcpy(&number, body.data(), sizeof number);
  return number;
}

}  // namespace moescope::cuda
