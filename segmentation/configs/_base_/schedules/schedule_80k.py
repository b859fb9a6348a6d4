# 80000 iterations.
_base_ = "./schedule_160k.py"
runner = dict(max_iters=80000)
evaluation = dict(interval=8000)
