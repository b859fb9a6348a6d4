# 40000 iterations.
_base_ = "./schedule_160k.py"
runner = dict(max_iters=40000)
evaluation = dict(interval=2000)
