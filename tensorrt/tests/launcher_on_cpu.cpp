// The launcher's source, compiled for the CPU, and what the tests ask of its header.
#include "../modulated_deform_conv_v3/trt_dcnv3_launcher.cu"

extern "C" int64_t test_output_size(
    int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  return trt_dcnv3::output_size(in, kernel, stride, pad, dilation);
}

// What is wrong with the attributes, or (sizes: 16 numbers) with the shapes; "" for nothing.
extern "C" const char* test_problem(const trt_dcnv3::Arguments* arguments, const int64_t* sizes) {
  static std::string text;
  text = trt_dcnv3::problem(*arguments);
  if (text.empty() && sizes != nullptr) {
    trt_dcnv3::Shapes shapes;
    int64_t* const rows[] = {shapes.input, shapes.offset, shapes.mask, shapes.output};
    for (int i = 0; i < 4; ++i) std::copy_n(sizes + 4 * i, 4, rows[i]);
    text = trt_dcnv3::problem(*arguments, shapes);
  }
  return text.c_str();
}
