"""What a user of transformers does with exported folders: a program that imports nothing of this project.

usage: hub_program.py CLIPS.npz OUT.npz PRE_TRAINED FINE_TUNED…
"""

import sys

import numpy as np
import torch
import transformers
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline

clips_file, out, *folders = sys.argv[1:]
clips = list(np.load(clips_file).values())
results = {"version": np.array(transformers.__version__)}
with torch.no_grad():
    for i, folder in enumerate(folders):
        extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
        model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        inputs = extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        outputs = model(**inputs, output_hidden_states=True)
        results[f"{i}/frames"], results[f"{i}/clips"] = outputs.last_hidden_state.numpy(), outputs.pooler_output.numpy()
        results[f"{i}/layers"] = np.array(len(outputs.hidden_states))
        results[f"{i}/one"] = model(**extractor(clips[0], return_tensors="pt"), return_dict=False)[1].numpy()
    for i, folder in list(enumerate(folders))[1:]:
        model = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True).eval()
        results[f"{i}/logits"] = model(**inputs).logits.numpy()
        results[f"{i}/labels"] = np.array(list(model.config.id2label.values()))
        tagger = pipeline("audio-classification", model=folder, feature_extractor=folder, trust_remote_code=True)
        tags = tagger(clips[0], top_k=100)
        results[f"{i}/scores"] = np.array([{tag["label"]: tag["score"] for tag in tags}[name] for name in results[f"{i}/labels"]])

model = AutoModelForAudioClassification.from_pretrained(folders[0], trust_remote_code=True, num_labels=3).train()
assert torch.isfinite(model.m2d.head.weight).all() and model.m2d.head.weight.std() > 0
assert torch.equal(model.m2d.head_norm.running_var, torch.ones_like(model.m2d.head_norm.running_var))
loss = model(**inputs, labels=torch.tensor([0, 1, 2])).loss
loss.backward()
assert model.m2d.backbone.cls_token.grad.abs().sum() > 0
model.save_pretrained(f"{out}.saved")
try:
    extractor(clips[0], sampling_rate=8000)
except ValueError as error:
    results["error"] = np.array(str(error))
for kind, waveforms in {
    "int16": [(32767 * clips[0]).astype(np.int16)],
    "integers": [0, 1, 2],
    "none": [],
    "no samples": np.zeros(0, np.float32),
    "two channels": [np.stack([clips[0], clips[0]])],
}.items():
    try:
        extractor(waveforms)
    except ValueError as error:
        results[f"refused/{kind}"] = np.array(str(error))
np.savez(out, **results)
