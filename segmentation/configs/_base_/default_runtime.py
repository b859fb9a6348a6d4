# Logs and hooks that every config starts from.
log_config = dict(
    interval=50,
    hooks=[
        dict(type="TextLoggerHook", by_epoch=False),  # the console and, for programs, *.log.json
        dict(type="TensorboardLoggerHook", by_epoch=False),  # WORK_DIR/tf_logs
    ],
)
dist_params = dict(backend="nccl")  # gloo where there is no GPU
log_level = "INFO"
load_from = None
resume_from = None
workflow = [("train", 1)]
cudnn_benchmark = True

opencv_num_threads = 0
mp_start_method = "fork"
