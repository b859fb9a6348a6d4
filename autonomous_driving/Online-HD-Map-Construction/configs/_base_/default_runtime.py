# Logs, checkpoints and hooks that every config starts from.
checkpoint_config = dict(interval=1, max_keep_ckpts=3)
log_config = dict(
    interval=50,
    hooks=[
        dict(type="TextLoggerHook"),  # the console, DATE.log and, for programs, DATE.log.json
        dict(type="TensorboardLoggerHook"),  # WORK_DIR/tf_logs
    ],
)

dist_params = dict(backend="nccl")  # gloo where there is no GPU
log_level = "INFO"
load_from = None
resume_from = None
workflow = [("train", 1)]

opencv_num_threads = 0
mp_start_method = "fork"

# --auto-scale-lr: the learning rate grows with the batch, from this one
auto_scale_lr = dict(enable=False, base_batch_size=8)
