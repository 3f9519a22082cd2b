# What a job of your site needs before python starts. The launcher inlines these lines where a cluster profile says
# `prelude: ["@sbatch/prelude.sh"]`; sbatch/caption.sbatch sources the file. Must not trap TERM or USR2.
#
# module load cuda/12.8
# source /shared/venv/bin/activate
# export HF_HOME=/shared/huggingface
# export HF_HUB_OFFLINE=1
