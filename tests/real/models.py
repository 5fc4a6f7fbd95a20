"""Models of published packages, that nobody here wrote: tiny configurations, random weights, nothing downloaded.

Each function returns a model that was called, and the arguments of that call.
"""

from __future__ import annotations

import keras
import numpy as np
from registry import Registry, called, get

TOKENS = np.array([[1, 5, 3, 2, 4], [2, 6, 7, 0, 0]], dtype="int32")
ONES = np.ones_like(TOKENS)
IMAGES = np.linspace(0, 1, 2 * 32 * 32 * 3, dtype="float32").reshape(2, 32, 32, 3)
SETS = np.random.default_rng(0).normal(size=(2, 8, 3)).astype("float32")
VECTORS = np.random.default_rng(1).normal(size=(6, 4)).astype("float32")
TEXT = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}


MODELS = Registry()
real = MODELS.real


class Wrapped(keras.Model):
    """What users write around a layer of a package."""

    def __init__(self, layer, width=2):
        super().__init__()
        self.layer = layer
        self.head = keras.layers.Dense(width)

    def call(self, *inputs):
        return self.head(self.layer(*inputs))


# --- keras-hub


def text(**more):
    return {"token_ids": TOKENS, "padding_mask": ONES, **more}


def hub(name):
    return get(f"keras_hub.models.{name}")


@real("keras_hub")
def bert_backbone():
    return called(hub("BertBackbone")(vocabulary_size=11, **TEXT), text(segment_ids=ONES * 0))


@real("keras_hub")
def bert_text_classifier():
    backbone = hub("BertBackbone")(vocabulary_size=11, max_sequence_length=8, **TEXT)
    model = hub("BertTextClassifier")(backbone, num_classes=3, activation="softmax")
    return called(model, text(segment_ids=ONES * 0))


@real("keras_hub")
def bert_masked_lm():
    model = hub("BertMaskedLM")(hub("BertBackbone")(vocabulary_size=11, **TEXT))
    inputs = text(segment_ids=ONES * 0, mask_positions=np.array([[1, 2], [0, 1]], "int32"))
    return called(model, inputs)


@real("keras_hub")
def gpt2_causal_lm():
    return called(hub("GPT2CausalLM")(hub("GPT2Backbone")(vocabulary_size=11, **TEXT)), text())


@real("keras_hub")
def albert_backbone():
    return called(hub("AlbertBackbone")(vocabulary_size=11, embedding_dim=4, **TEXT), text(segment_ids=ONES * 0))


@real("keras_hub")
def distil_bert_backbone():
    return called(hub("DistilBertBackbone")(vocabulary_size=11, **TEXT), text())


@real("keras_hub")
def roberta_text_classifier():
    model = hub("RobertaTextClassifier")(hub("RobertaBackbone")(vocabulary_size=11, **TEXT), num_classes=2)
    return called(model, text())


@real("keras_hub")
def deberta_backbone():
    return called(hub("DebertaV3Backbone")(vocabulary_size=11, bucket_size=4, max_sequence_length=8, **TEXT), text())


@real("keras_hub")
def f_net_backbone():
    options = {name: value for name, value in TEXT.items() if name != "num_heads"}
    model = hub("FNetBackbone")(vocabulary_size=11, **options)
    return called(model, {"token_ids": TOKENS, "segment_ids": ONES * 0})


@real("keras_hub")
def opt_backbone():
    return called(hub("OPTBackbone")(vocabulary_size=11, **TEXT), text())


@real("keras_hub")
def bloom_backbone():
    return called(hub("BloomBackbone")(vocabulary_size=11, **TEXT), text())


GROUPED = {"num_layers": 2, "num_query_heads": 2, "num_key_value_heads": 1, "hidden_dim": 8, "intermediate_dim": 16}


@real("keras_hub")
def llama_causal_lm():
    return called(hub("LlamaCausalLM")(hub("LlamaBackbone")(vocabulary_size=11, **GROUPED)), text())


@real("keras_hub")
def gemma_backbone():
    return called(hub("GemmaBackbone")(vocabulary_size=11, head_dim=4, **GROUPED), text())


@real("keras_hub")
def mixtral_backbone():
    return called(hub("MixtralBackbone")(vocabulary_size=11, num_experts=2, **GROUPED), text())


@real("keras_hub")
def bart_backbone():
    names = ("encoder_token_ids", "decoder_token_ids"), ("encoder_padding_mask", "decoder_padding_mask")
    inputs = {name: TOKENS for name in names[0]} | {name: ONES for name in names[1]}
    return called(hub("BartBackbone")(vocabulary_size=11, **TEXT), inputs)


@real("keras_hub")
def t5_backbone():
    names = ("encoder_token_ids", "decoder_token_ids"), ("encoder_padding_mask", "decoder_padding_mask")
    inputs = {name: TOKENS for name in names[0]} | {name: ONES for name in names[1]}
    return called(hub("T5Backbone")(vocabulary_size=11, **TEXT), inputs)


@real("keras_hub")
def whisper_backbone():
    model = hub("WhisperBackbone")(vocabulary_size=11, num_mels=4, max_encoder_sequence_length=16, **TEXT)
    audio = np.linspace(-1, 1, 2 * 16 * 4, dtype="float32").reshape(2, 16, 4)
    inputs = {"encoder_features": audio, "decoder_token_ids": TOKENS, "decoder_padding_mask": ONES}
    return called(model, inputs)


def resnet():
    return hub("ResNetBackbone")(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(32, 32, 3),
    )


@real("keras_hub")
def resnet_image_classifier():
    return called(hub("ImageClassifier")(resnet(), num_classes=3), IMAGES)


@real("keras_hub")
def vit_backbone():
    model = hub("ViTBackbone")((32, 32, 3), (8, 8), num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16)
    return called(model, IMAGES)


@real("keras_hub")
def densenet_backbone():
    return called(hub("DenseNetBackbone")([1, 2], image_shape=(32, 32, 3), growth_rate=4), IMAGES)


@real("keras_hub")
def mit_backbone():
    model = hub("MiTBackbone")(
        layerwise_depths=[1, 1],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        image_shape=(32, 32, 3),
        hidden_dims=[4, 8],
    )
    return called(model, IMAGES)


@real("keras_hub")
def dino_backbone():
    model = hub("DINOV2Backbone")(8, 1, 8, 2, 16, image_shape=(32, 32, 3), position_embedding_shape=(32, 32, 3))
    return called(model, IMAGES)


@real("keras_hub")
def vgg_backbone():
    return called(hub("VGGBackbone")([1, 1], [4, 8], image_shape=(32, 32, 3)), IMAGES)


@real("keras_hub")
def rqvae_backbone():
    model = get("keras_hub.src.models.rqvae.rqvae_backbone.RQVAEBackbone")(
        4, [8], 3, [8], num_embeddings=5, num_quantizers=2
    )
    return called(model, VECTORS)


@real("keras_hub")
def transformer_layers_in_a_users_model():
    hub_layers = get("keras_hub.layers")

    class Translator(keras.Model):
        def __init__(self, size, width, depth):
            super().__init__()
            self.embedding = hub_layers.TokenAndPositionEmbedding(size, 8, width)
            self.encoders = [hub_layers.TransformerEncoder(16, 2) for _ in range(depth)]
            self.decoder = hub_layers.TransformerDecoder(16, 2)
            self.pooled = hub_layers.MLMHead(size, token_embedding=None) if depth > 9 else keras.layers.Dense(size)

        def call(self, inputs):
            source, target = inputs["source"], inputs["target"]
            x = self.embedding(source)
            for encoder in self.encoders:
                x = encoder(x)
            return self.pooled(self.decoder(self.embedding(target), x))

    return called(Translator(11, 8, 2), {"source": TOKENS, "target": TOKENS})


# --- keras-rs


@real("keras_rs")
def deep_cross_network():
    cross = get("keras_rs.layers.FeatureCross")
    return called(Wrapped(cross(projection_dim=3)), VECTORS, VECTORS * 2)


@real("keras_rs")
def dot_interaction():
    return called(Wrapped(get("keras_rs.layers.DotInteraction")(self_interaction=True)), [VECTORS, VECTORS * 2])


@real("keras_rs")
def embed_reduce():
    return called(Wrapped(get("keras_rs.layers.EmbedReduce")(11, 4, combiner="mean")), TOKENS)


@real("keras_rs")
def two_tower_with_retrieval():
    retrieval = get("keras_rs.layers.BruteForceRetrieval")

    class TwoTower(keras.Model):
        def __init__(self, users, candidates):
            super().__init__()
            self.users = keras.Sequential([keras.layers.Embedding(users, 3), keras.layers.Dense(3)])
            self.candidates = keras.layers.Embedding(candidates, 3)
            self.count = candidates
            self.retrieval = retrieval(k=2, return_scores=True)

        def build(self, input_shape):
            self.users.build(input_shape)
            self.candidates.build(input_shape)
            self.retrieval.update_candidates(self.candidates(keras.ops.arange(self.count)))
            super().build(input_shape)

        def call(self, users):
            scores, found = self.retrieval(self.users(users))
            return {"scores": scores, "found": found}

    return called(TwoTower(7, 5), np.array([1, 4, 2], dtype="int32"))


# --- bayesflow


def flow(name):
    return get(f"bayesflow.networks.{name}")


@real("bayesflow")
def deep_set():
    return called(Wrapped(flow("DeepSet")(summary_dim=4, embed_dim=8, depth=1, mlp_widths=(8,))), SETS)


@real("bayesflow")
def set_transformer():
    model = flow("SetTransformer")(summary_dim=4, embed_dims=(8,), num_heads=(2,), num_seeds=2)
    return called(Wrapped(model), SETS)


@real("bayesflow")
def time_series_network():
    return called(Wrapped(flow("TimeSeriesNetwork")(4, filters=4, recurrent_dim=6)), SETS)


@real("bayesflow")
def time_series_transformer():
    return called(Wrapped(flow("TimeSeriesTransformer")(4, embed_dims=(8,), num_heads=(2,))), SETS)


@real("bayesflow")
def fusion_transformer():
    model = flow("FusionTransformer")(4, embed_dims=(8,), num_heads=(2,), template_dim=6)
    return called(Wrapped(model), SETS)


@real("bayesflow")
def mlp():
    return called(Wrapped(flow("MLP")((8, 8), residual=True, norm="layer")), VECTORS)


def approximator(network, summary=None):
    """An approximator as bayesflow's workflows make it, trained on one batch."""
    model = get("bayesflow.ContinuousApproximator")(
        inference_network=network, summary_network=summary, adapter=get("bayesflow.Adapter")()
    )
    data = {"inference_variables": VECTORS}
    data |= (
        {"inference_conditions": VECTORS * 2} if summary is None else {"summary_variables": np.tile(SETS, (3, 1, 1))}
    )
    model.compile(optimizer="adam")
    model.build({name: value.shape for name, value in data.items()})
    return model, ()


@real("bayesflow")
def coupling_flow_approximator():
    return approximator(flow("CouplingFlow")(depth=2, subnet_kwargs={"widths": (8,)}))


@real("bayesflow")
def flow_matching_approximator():
    summary = flow("DeepSet")(summary_dim=4, embed_dim=8, depth=1, mlp_widths=(8,))
    return approximator(flow("FlowMatching")(subnet_kwargs={"widths": (8,)}), summary)


@real("bayesflow")
def diffusion_approximator():
    return approximator(flow("DiffusionModel")(subnet_kwargs={"widths": (8,)}))


@real("bayesflow")
def consistency_approximator():
    return approximator(flow("ConsistencyModel")(total_steps=10, subnet_kwargs={"widths": (8,)}))


# --- keras-bio

PROTEIN = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def protein():
    return get("keras_bio.protein.esm2.ESM2Config")(**PROTEIN)


@real("keras_bio")
def esm2_model():
    return called(get("keras_bio.protein.esm2.ESM2Model")(protein()), TOKENS)


@real("keras_bio")
def esm2_masked_lm():
    return called(get("keras_bio.protein.esm2.ESM2ForMaskedLM")(protein()), TOKENS, ONES)


@real("keras_bio")
def esm2_sequence_classifier():
    return called(get("keras_bio.protein.esm2.ESM2ForSequenceClassification")(protein(), num_labels=3), TOKENS)


@real("keras_bio")
def prot_t5_model():
    config = get("keras_bio.protein.prot_t5.ProtT5Config")(d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    return called(get("keras_bio.protein.prot_t5.ProtT5Model")(config), TOKENS, TOKENS)


@real("keras_bio")
def prot_t5_token_classifier():
    config = get("keras_bio.protein.prot_t5.ProtT5Config")(d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return called(get("keras_bio.protein.prot_t5.ProtT5ForTokenClassification")(config, num_classes=3), TOKENS)


@real("keras_bio")
def hyena_causal_lm():
    config = get("keras_bio.dna.hyena.HyenaDNAConfig")(d_model=8, n_layer=1, d_inner=16, max_seq_len=8, filter_order=4)
    return called(get("keras_bio.dna.hyena.HyenaDNAForCausalLM")(config), TOKENS)


@real("keras_bio")
def dna_bert_classifier():
    config = get("keras_bio.dna.dnabert.DNABERTConfig")(vocab_size=20, max_position_embeddings=8, **PROTEIN)
    return called(get("keras_bio.dna.dnabert.DNABERTForSequenceClassification")(config, num_labels=2), TOKENS)


# --- keras-climate

VISION = {"embed_dim": 16, "depth": 1, "num_heads": 2}


@real("keras_climate")
def satmae_encoder():
    encoder = get("keras_climate.remote_sensing.satmae.SatMAEEncoder")
    return called(encoder(img_size=32, patch_size=8, **VISION), IMAGES)


@real("keras_climate")
def scalemae_encoder():
    encoder = get("keras_climate.remote_sensing.scalemae.ScaleMAEEncoder")
    return called(encoder(img_size=32, patch_size=8, **VISION), [IMAGES, np.ones((2,), "float32")])


@real("keras_climate")
def prithvi_encoder():
    encoder = get("keras_climate.foundation.prithvi.PrithviEncoder")
    frames = np.linspace(0, 1, 2 * 3 * 32 * 32 * 6, dtype="float32").reshape(2, 3, 32, 32, 6)
    return called(encoder(img_size=32, patch_size=8, **VISION), frames)


# --- the rest


@real("gated_sae")
def gated_autoencoder():
    model = get("gated_sae.model.GatedSAE")(4, 16, lambda_sparse=0.01)
    model.compile(optimizer=keras.optimizers.Adam(1e-3, beta_1=0.0))
    model.fit(VECTORS, verbose=0)
    return called(model, VECTORS)


@real("keras_sciml")
def fourier_operator_1d():
    inputs = np.linspace(-1, 1, 2 * 16 * 2, dtype="float32").reshape(2, 16, 2)
    return called(get("keras_sciml.models.fno.FNO1D")(modes=4, width=6, depth=2, projection_dim=8), inputs)


@real("keras_sciml")
def fourier_operator_2d():
    model = get("keras_sciml.models.fno.FNO2D")(modes=(3, 3), width=6, depth=1, projection_dim=8)
    return called(model, IMAGES[:, :8, :8])


@real("keras_sciml")
def physics_informed_network():
    model = get("keras_sciml.models.pinn.PINN")(
        hidden_layers=2, hidden_units=8, use_fourier_features=True, fourier_dim=4, residual_fn=lambda x: x * 0.5
    )
    return called(model, VECTORS)


@real("keras_sciml")
def deep_o_net():
    model = get("keras_sciml.models.deeponet.DeepONet")(
        latent_dim=4, branch_input_dim=4, trunk_input_dim=4, hidden_layers=1, hidden_units=8
    )
    return called(model, [VECTORS, VECTORS * 2])


@real("kerasfactory")
def ts_mixer():
    inputs = np.linspace(-1, 1, 2 * 8 * 3, dtype="float32").reshape(2, 8, 3)
    return called(get("kerasfactory.models.TSMixer.TSMixer")(8, 4, 3, n_blocks=1, ff_dim=8), inputs)


@real("kerasfactory")
def time_mixer():
    inputs = np.linspace(-1, 1, 2 * 16 * 3, dtype="float32").reshape(2, 16, 3)
    model = get("kerasfactory.models.TimeMixer.TimeMixer")(
        16, 4, 3, d_model=8, d_ff=8, e_layers=1, moving_avg=5, down_sampling_layers=1
    )
    return called(model, inputs)


@real("kerasfactory")
def factory_autoencoder():
    model = get("kerasfactory.models.autoencoder.Autoencoder")(4, encoding_dim=6, intermediate_dim=3)
    return called(model, VECTORS)


@real("kerasfactory")
def feed_forward():
    model = get("kerasfactory.models.feed_forward.BaseFeedForwardModel")(["a", "b"], [8, 4], dropout_rate=0.1)
    return called(model, {"a": VECTORS[:, :1], "b": VECTORS[:, 1:2]})


@real("kerasfactory")
def sfne_block():
    model = get("kerasfactory.models.SFNEBlock.SFNEBlock")(4, 3, hidden_dim=8, num_layers=1, slow_network_units=8)
    return called(model, VECTORS)


@real("medicai")
def medical_densenet():
    model = get("medicai.models.DenseNet121")(input_shape=(32, 32, 1), num_classes=2)
    return called(model, IMAGES[..., :1])


@real("medicai")
def medical_mix_vit():
    return called(get("medicai.models.MixViTB0")(input_shape=(32, 32, 3), num_classes=2), IMAGES)


@real("ncps")
def liquid_network():
    cell = get("ncps.keras.CfC")
    wiring = get("ncps.wirings.AutoNCP")
    return called(Wrapped(cell(wiring(8, 3))), SETS)


@real("ncps")
def liquid_time_constant():
    return called(Wrapped(get("ncps.keras.LTC")(6, return_sequences=True)), SETS)


@real("kgcnn")
def megan():
    model = get("kgcnn.literature.MEGAN._model.MEGAN")(units=[8, 4], final_units=[2])
    graph = np.zeros(6, dtype="int64"), np.array([6], dtype="int64")
    edges = np.array([[0, 1, 2, 3, 4, 5], [1, 0, 3, 2, 5, 4]], dtype="int64")
    return called(model, [VECTORS, VECTORS[:, :2], edges, np.zeros((1, 2), "float32"), *graph])
