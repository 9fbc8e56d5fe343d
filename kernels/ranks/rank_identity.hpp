#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "core/backend/moe_backend.hpp"
#include "core/ranks/rank_transport.hpp"
#include "kernels/ranks/rank_task.hpp"

/// What rank 0 and the others have to agree on.
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

inline Message body_of(std::int64_t number) {
  Message body(sizeof number);
  std::memcpy(body.data(), &number, sizeof number);
  return body;
}
inline std::int64_t number_in(const Message& body) {
  std::int64_t number = 0;
  std::memcpy(&number, body.data(), std::min(sizeof number, body.size()));
  return number;
}

}  // namespace moescope::cuda
