"""Models of published packages that were written for Keras 2, on tf_keras; as in ``models.py``."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from registry import Registry, called, get

MODELS = Registry()
real = MODELS.real

TOKENS = np.array([[1, 5, 3, 2, 4], [2, 6, 7, 1, 1]], dtype="int32")
ONES = np.ones_like(TOKENS)
IMAGES = np.linspace(0, 1, 2 * 3 * 32 * 32, dtype="float32").reshape(2, 3, 32, 32)
NODES = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
EDGES = np.array([[[0, 1, 0, 0, 1], [1, 0, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 1, 0, 1], [1, 0, 0, 1, 0]]] * 2, "float32")


# --- transformers 4

BERT = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}


def hugging(config, model, inputs=None, **options):
    made = get(f"transformers.{model}")(get(f"transformers.{config}")(**options))
    return called(made, {"input_ids": TOKENS, "attention_mask": ONES} if inputs is None else inputs)


@real("transformers")
def bert():
    return hugging("BertConfig", "TFBertModel", **BERT)


@real("transformers")
def bert_classifier():
    return hugging("BertConfig", "TFBertForSequenceClassification", num_labels=3, **BERT)


@real("transformers")
def roberta_masked_lm():
    return hugging("RobertaConfig", "TFRobertaForMaskedLM", **BERT)


@real("transformers")
def electra():
    return hugging("ElectraConfig", "TFElectraModel", embedding_size=8, **BERT)


@real("transformers")
def albert():
    return hugging("AlbertConfig", "TFAlbertModel", embedding_size=4, **BERT)


@real("transformers")
def distil_bert():
    options = {"vocab_size": 11, "dim": 8, "hidden_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 16}
    return hugging("DistilBertConfig", "TFDistilBertForTokenClassification", **options)


@real("transformers")
def gpt2():
    return hugging("GPT2Config", "TFGPT2LMHeadModel", vocab_size=11, n_positions=16, n_embd=8, n_layer=2, n_head=2)


@real("transformers")
def t5():
    inputs = {"input_ids": TOKENS, "decoder_input_ids": TOKENS}
    options = {"vocab_size": 11, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return hugging("T5Config", "TFT5ForConditionalGeneration", inputs, decoder_start_token_id=0, **options)


@real("transformers")
def bart():
    inputs = {"input_ids": TOKENS, "decoder_input_ids": TOKENS}
    options = {f"{side}_{part}": 2 for side in ("encoder", "decoder") for part in ("layers", "attention_heads")}
    options |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 16}
    return hugging("BartConfig", "TFBartForConditionalGeneration", inputs, vocab_size=11, d_model=8, **options)


@real("transformers")
def vit_classifier():
    options = {name: value for name, value in BERT.items() if name not in ("vocab_size", "max_position_embeddings")}
    inputs = {"pixel_values": IMAGES}
    return hugging("ViTConfig", "TFViTForImageClassification", inputs, image_size=32, patch_size=8, **options)


@real("transformers")
def bert_in_a_users_model():
    class Classifier(tf.keras.Model):
        def __init__(self, encoder, classes):
            super().__init__()
            self.encoder = encoder
            self.dropout = tf.keras.layers.Dropout(0.1)
            self.out = tf.keras.layers.Dense(classes)

        def call(self, tokens, training=False):
            pooled = self.encoder(tokens, training=training).pooler_output
            return self.out(self.dropout(pooled, training=training))

    return called(Classifier(get("transformers.TFBertModel")(get("transformers.BertConfig")(**BERT)), 3), TOKENS)


# --- spektral


@real("spektral")
def graph_convolution():
    spektral = get("spektral.layers")

    class Net(tf.keras.Model):
        def __init__(self, channels, classes):
            super().__init__()
            self.first = spektral.GCNConv(channels, activation="relu")
            self.second = spektral.GATConv(channels, attn_heads=2)
            self.pool = spektral.GlobalAttentionPool(channels)
            self.out = tf.keras.layers.Dense(classes)

        def call(self, inputs):
            nodes, edges = inputs
            return self.out(self.pool(self.second([self.first([nodes, edges]), edges])))

    return called(Net(4, 3), (NODES, EDGES))


@real("spektral")
def general_graph_network():
    model = get("spektral.models.GeneralGNN")(3, hidden=8, message_passing=2, pool="sum", activation="softmax")
    edges = tf.sparse.from_dense(EDGES[0])
    model([NODES[0], edges, np.zeros(5, "int64")])
    return model, ()


@real("spektral")
def graph_convolution_of_the_package():
    return called(get("spektral.models.GCN")(3, channels=8), (NODES, EDGES))


# --- tensorflow-recommenders


@real("tensorflow_recommenders")
def deep_cross():
    cross = get("tensorflow_recommenders.layers.feature_interaction.Cross")
    task = get("tensorflow_recommenders.tasks.Ranking")

    class Ranking(get("tensorflow_recommenders.Model")):
        def __init__(self, width):
            super().__init__()
            self.embeddings = {name: tf.keras.layers.Embedding(12, width) for name in ("user", "item")}
            self.cross = cross(projection_dim=2)
            self.out = tf.keras.Sequential([tf.keras.layers.Dense(4, activation="relu"), tf.keras.layers.Dense(1)])
            self.task = task(loss=tf.keras.losses.MeanSquaredError(), metrics=[tf.keras.metrics.RootMeanSquaredError()])

        def call(self, features):
            x = tf.concat([self.embeddings[name](features[name]) for name in self.embeddings], axis=1)
            return self.out(self.cross(x))

        def compute_loss(self, features, training=False):
            return self.task(labels=features["rating"], predictions=self(features))

    features = {"user": TOKENS[:, 0], "item": TOKENS[:, 1]}
    model = Ranking(3)
    model.compile(optimizer=tf.keras.optimizers.Adagrad(0.1))
    model.fit(tf.data.Dataset.from_tensors({**features, "rating": np.ones(2, "float32")}), epochs=2, verbose=0)
    return called(model, features)


@real("tensorflow_recommenders")
def two_towers_with_brute_force():
    class TwoTowers(get("tensorflow_recommenders.Model")):
        def __init__(self, users, items):
            super().__init__()
            self.users = tf.keras.Sequential([tf.keras.layers.StringLookup(vocabulary=users), embedding(users)])
            self.items = tf.keras.Sequential([tf.keras.layers.StringLookup(vocabulary=items), embedding(items)])

        def call(self, inputs):
            return tf.reduce_sum(self.users(inputs["user"]) * self.items(inputs["item"]), axis=1)

    def embedding(vocabulary):
        return tf.keras.layers.Embedding(len(vocabulary) + 1, 3)

    model = TwoTowers(["ann", "bob"], ["x", "y", "z"])
    inputs = {"user": np.array(["ann", "bob"], object), "item": np.array(["x", "y"], object)}
    model({name: tf.constant(values.tolist()) for name, values in inputs.items()})
    return model, (inputs,)


@real("tensorflow_recommenders")
def dot_interaction():
    interaction = get("tensorflow_recommenders.layers.feature_interaction.DotInteraction")

    class Net(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = [tf.keras.layers.Dense(3) for _ in range(2)]
            self.interaction = interaction()

        def call(self, x):
            return self.interaction([layer(x) for layer in self.dense])

    return called(Net(), NODES[0])
