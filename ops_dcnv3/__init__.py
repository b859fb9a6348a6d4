"""DCNv3, the operator of InternImage (arXiv 2211.05778), on CPU, CUDA and plain PyTorch.

    from ops_dcnv3.functions import dcnv3     # the operator
    from ops_dcnv3.modules import DCNv3       # the layer

DCNv4 (arXiv 2401.06197) runs on the same kernels: `functions.dcnv4`, `modules.DCNv4`.

`python -m ops_dcnv3` reports what is installed and tests it.
"""

__version__ = "2.0.0"
