#pragma once

#include "capi/python/dlpack.hpp"
#include "capi/python/interpreter.hpp"
#include "capi/python/plans.hpp"

/// The package's way to an operation without ctypes and without Python between: some microseconds of a call
/// of a small layer. What a call has to be is checked in Python, for the first of its kind; `learn` then
/// keeps a plan, and calls of the same kind find it. Every other call is answered with None, and Python sees
/// to it.
namespace moescope::capi::python {

/// What the package has said of PyTorch. Of the process, never given back.
struct Framework {
  const Interpreter* python = nullptr;
  const DlExchange* exchange = nullptr;
  Object* tensor_type = nullptr;
  Object* parameter_type = nullptr;
  Object* empty_like = nullptr;
  Object* deterministic = nullptr;  ///< functions without arguments, as the next two
  Object* threads = nullptr;
  Object* grad_enabled = nullptr;
  Object* stands_between = nullptr;  ///< tuple of functions; a call goes past Python where all are false
  Object* direct = nullptr;          ///< tuple by form: autograd's function around a kernel, or None
  Object* requires_grad = nullptr;   ///< the attribute's name
};

/// The call's arguments, as a plan is found by them.
struct Arguments {
  Key key;
  std::array<void*, kMostTensors> address{};
  std::int32_t device_type = 0;
  std::int32_t device_index = 0;
};
/// False where no plan can serve: a type, an extent or a layout that only Python sees to.
bool read_arguments(const Framework& framework, FormIndex form, Object* const* given, std::ptrdiff_t count,
                    Arguments& arguments);

/// What an operation made: a tensor or a tuple. None: no plan, or it failed, and Python will say why. Null: a
/// Python error is set.
Object* run_plan(const Framework& framework, FormIndex form, Object* const* given,
                 const Arguments& arguments);

/// A plan from what Python made of its first call. given: those of the call; outputs: a tuple of what to make
/// others like; kept: a tuple of tensors of one element, to be kept for those that are like no argument.
/// False where it cannot be kept.
bool learn_plan(const Framework& framework, FormIndex form, Object* const* given, std::ptrdiff_t count,
                const moescope_shape& shape, const moescope_execution& where, Object* workspace,
                Object* outputs, Object* kept);

}  // namespace moescope::capi::python
