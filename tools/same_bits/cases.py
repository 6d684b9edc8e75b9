"""The commands of `tools.same_bits`: tiny trainings, every guidance, samplers, edits and metrics."""

LOOP = (
    "--data shapes --image-size 16 --shapes-train 64 --shapes-validation 32 --device cpu --train-batch-size 16 "
    "--log-steps 1 --validation-images 16 --checkpointing-steps 10 --max-train-steps 30"
)
UNET = (
    "--block-out-channels 8 16 --attention False True --attention-head-dim 8 --norm-num-groups 4 --layers-per-block 1"
)
TEXT = "--text-width 16 --text-layers 1 --text-heads 2"
CODER = "--block-out-channels 8 8 --norm-num-groups 4 --no-attention --latent-channels 4 --calibration-images 64"
DISCRIMINATOR = "--discriminator-width 4 --discriminator-layers 2"
AUTOENCODER = f"autoencoder {LOOP} {CODER} --learning-rate 5e-3"
DIFFUSION = f"diffusion {LOOP} {UNET} {TEXT} --learning-rate 1e-2 --preview-images 2 --preview-steps 3"
PRIOR = f"prior {LOOP} {TEXT} --autoencoder vq --codes codes --width 16 --preview-images 2 --learning-rate 5e-3"
TRAININGS = {  # run folder: training, in this order
    "kl": f"{AUTOENCODER} --perceptual features --validation-rfid --adversarial-weight 0.5 --discriminator-start 8 "
    f"--discriminator-warmup 4 --adversarial-ramp 5 {DISCRIMINATOR}",
    "vq": f"{AUTOENCODER} --bottleneck vq --num-codes 16 --codebook-init data --revive-after 5",
    "text": f"{DIFFUSION} --autoencoder kl --latents latents --checkpoints-total-limit 3",
    "classes": f"{DIFFUSION} --autoencoder kl --latents latents --text-encoder None --ema-lengths 0.05 0.1 "
    "--ema-snapshot-steps 10 --snr-gamma 5 --lr-scheduler cosine --lr-warmup-steps 4",
    "pixels": f"{DIFFUSION} --autoencoder identity --beta-schedule flow --optimizer muon "
    "--gradient-accumulation-steps 2 --stratified-times",
    "classifier": f"classifier {LOOP} {UNET} --autoencoder text --latents latents --learning-rate 1e-2 --dropout 0.2",
    "prior": f"{PRIOR} --kind pixelcnn --layers 3 --kernel-size 3 --text-encoder None",
    "prior_text": f"{PRIOR} --kind transformer --layers 1 --heads 2 --token-masking 0.1",
    "gan": f"gan {LOOP} --block-out-channels 8 8 8 --norm-num-groups 4 --noise-channels 4 --no-attention "
    f"{DISCRIMINATOR} --learning-rate 1e-3 --discriminator-rounds 2 --objective wgan_gp",
}
BOTTLENECKS = {  # the others, for three steps
    "bn": "", "vmf": "", "fsq": "--levels 3 3 3 3", "lfq": "", "gumbel": "--num-codes 16 --temperature-steps 2",
    "cosine_vq": "--num-codes 16", "product_vq": "--num-codes 16 --num-quantizers 2", "linear": "--patch-size 4",
    "residual_vq": "--num-codes 16 --num-quantizers 2", "vqvae2": "--num-codes 16 --code-width 8 --codebook-init data",
    "nvae": "--coder vit --patch-size 4 --group-width 8 --groups-per-level 1", "none": "--mask-probability 0.3",
}  # fmt: skip
PROMPTS = "--prompt 'a large red circle on a blue background' --prompt 'a star'"
FIRST, SECOND = "images/text/none/000000.png", "images/text/none/000001.png"
RED = "colour([0.8,-0.6,-0.6]"
GUIDANCES = {  # the first word of each key is a registered guidance
    "cfg": "--guidance cfg(5)",
    "cfg by its scale": "--guidance-scale 5",
    "cfg at scale 0": "--guidance-scale 0",
    "cfg in an interval": "--guidance-scale 5 --guidance-interval 0.3 5",
    "cfg on a curve": "--guidance \"cfg(5, curve='linear')\"",
    "cfg against a negative prompt": "--guidance-scale 5 --negative-prompt red",
    "cfgpp": "--guidance cfgpp(0.8)",
    "apg": "--guidance apg(5,norm=15.0,momentum=-0.5)",
    "cfg_zero": "--guidance cfg_zero(5)",
    "tcfg": "--guidance tcfg(5)",
    "fdg": "--guidance fdg(5,low=3.0)",
    "rescale": "--guidance cfg(5) --guidance rescale(0.7)",
    "threshold": "--guidance cfg(5) --guidance threshold(0.9,limit=1.0)",
    "pag": "--guidance pag(5)",
    "pag in layers": "--guidance pag(5) --perturbed-layers down_blocks mid_block up_blocks",
    "seg": "--guidance seg(5)",
    "seg with a finite blur": "--guidance seg(5) --blur-sigma 1",
    "slg": "--guidance slg(5)",
    "slg of a layer": "--guidance slg(5) --skipped-layers mid_block.resnets.1",
    "autoguidance": "--guidance autoguidance(3) --weak text/checkpoint-10",
    "classifier": "--classifier classifier --class-label 1 --guidance classifier(8)",
    "classifier alone": "--classifier classifier --class-label 1 --classifier-scale 8 --guidance-scale 0",
    "energy": f"--energy {RED}) --guidance energy(1)",
    "energy of the noisy latents": f"--energy \"{RED}, of='x', jacobian=False)\" --guidance energy(1)",
    "energy inpainting": f"--energy \"inpainting('{FIRST}', 'mask.pgm')\" --guidance energy(2)",
    "energy similarity": f"--energy \"similarity('{SECOND}')\" --guidance energy(2) --classifier classifier",
    "cfg with pag and classifier": "--guidance cfg(3) --guidance pag(2) --guidance classifier(4) "
    "--classifier classifier --class-label 2",
}
OTHER_SETTINGS = {  # editing, spacings, batches
    "image to image": f"--init-image {FIRST} --strength 0.6",
    "inpainting": f"--init-image {FIRST} --mask mask.pgm",
    "inpainting of the original": f"--init-image {FIRST} --mask mask.pgm --unmasked original",
    "feature cache": "--feature-cache 2 --guidance-scale 5",
    "5 steps": "--num-inference-steps 5",
    "batches of 1": "--batch-size 1",
    "batches of 3": "--batch-size 3 --guidance-scale 5 --sampler ddpm",
    "from index 2": "--first-index 2",
    "slices": "--slicing",
    "ddim(eta=1) with cfgpp": "--sampler ddim(eta=1) --guidance cfgpp(0.8)",
    **{spacing: f"--spacing {spacing} --sampler euler" for spacing in ("leading", "karras", "exponential", "log_snr")},
}
SOLVERS = ("ddim", "ddpm", "dpmpp_2m", "unipc", "heun", "dpmpp_2m_sde")  # for the models of classes and of pixels
METRICS = "fid sliced_fid fid_infinity kid precision recall density coverage"
FEW = "--num-images 24 --num-reference 24 --bootstrap 8 --device cpu"
AUTOENCODER_METRICS = {
    "kl": "psnr ssim rfid rate active_units aggregate_posterior iwae --iwae-samples 1 4 --iwae-images 4",
    "vq": "psnr ssim rfid rate codebook",
    "ae-nvae": "psnr rate iwae --iwae-samples 1 4 --iwae-images 4",
}
