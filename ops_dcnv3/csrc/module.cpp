// The Python module `DCNv3`: loading it adds the compiled kernels to torch.ops.ops_dcnv3, and its
// two functions keep the names and the argument order of the original package.
#include <ATen/Parallel.h>
#include <torch/extension.h>

#include "dcnv3_op.h"

#ifndef DCNV3_CUDA_ARCHITECTURES
#define DCNV3_CUDA_ARCHITECTURES ""
#endif

namespace {

using Forward = at::Tensor(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t, int64_t, int64_t, int64_t,
    int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, double, bool);
using Backward = std::tuple<at::Tensor, at::Tensor, at::Tensor>(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t, int64_t,
    int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, double, bool);

// The package defines the operator's schema; code that imports only `DCNv3` gets it here. No static
// variable around the import: its lock and Python's could wait for each other.
template <typename Signature>
c10::TypedOperatorHandle<Signature> op(const char* name) {
  pybind11::module_::import("ops_dcnv3.functions");
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

at::Tensor dcnv3_forward(
    const at::Tensor& input, const at::Tensor& offset, const at::Tensor& mask, int64_t kernel_h,
    int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
    int64_t dilation_h, int64_t dilation_w, int64_t group, int64_t group_channels,
    double offset_scale, int64_t /*im2col_step*/, bool remove_center) {
  const auto handle = op<Forward>("ops_dcnv3::dcnv3");
  const pybind11::gil_scoped_release release;
  return handle.call(input, offset, mask, DCNV3_ARGUMENT_NAMES);
}

std::vector<at::Tensor> dcnv3_backward(
    const at::Tensor& input, const at::Tensor& offset, const at::Tensor& mask, int64_t kernel_h,
    int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
    int64_t dilation_h, int64_t dilation_w, int64_t group, int64_t group_channels,
    double offset_scale, const at::Tensor& grad_output, int64_t /*im2col_step*/,
    bool remove_center) {
  const auto handle = op<Backward>("ops_dcnv3::dcnv3_backward");
  const pybind11::gil_scoped_release release;
  auto [grad_input, grad_offset, grad_mask] =
      handle.call(grad_output, input, offset, mask, DCNV3_ARGUMENT_NAMES);
  return {grad_input, grad_offset, grad_mask};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  namespace py = pybind11;
  m.attr("compiled") = true;
  m.attr("abi_version") = DCNV3_ABI_VERSION;
  m.attr("torch_version") = TORCH_VERSION;
  m.attr("cuda_architectures") = DCNV3_CUDA_ARCHITECTURES;
#if AT_PARALLEL_OPENMP && !defined(_OPENMP)
  m.attr("multi_threaded") = false;  // at::parallel_for was compiled to a plain loop
#else
  m.attr("multi_threaded") = true;
#endif
  m.def("cpu_level", &dcnv3::cpu_level, "The instruction set of the CPU kernels.");
  m.def(
      "set_cpu_level", &dcnv3::set_cpu_level, py::arg("name"),
      "Chooses the CPU kernels: 'avx512', 'avx2', 'portable', or '' for the best. For tests: not "
      "while an operator runs.");
  m.def(
      "dcnv3_forward", &dcnv3_forward, py::arg("input"), py::arg("offset"), py::arg("mask"),
      py::arg("kernel_h"), py::arg("kernel_w"), py::arg("stride_h"), py::arg("stride_w"),
      py::arg("pad_h"), py::arg("pad_w"), py::arg("dilation_h"), py::arg("dilation_w"),
      py::arg("group"), py::arg("group_channels"), py::arg("offset_scale"),
      py::arg("im2col_step") = 256, py::arg("remove_center") = false);
  m.def(
      "dcnv3_backward", &dcnv3_backward, py::arg("input"), py::arg("offset"), py::arg("mask"),
      py::arg("kernel_h"), py::arg("kernel_w"), py::arg("stride_h"), py::arg("stride_w"),
      py::arg("pad_h"), py::arg("pad_w"), py::arg("dilation_h"), py::arg("dilation_w"),
      py::arg("group"), py::arg("group_channels"), py::arg("offset_scale"),
      py::arg("grad_output"), py::arg("im2col_step") = 256, py::arg("remove_center") = false);
}
