"""How public examples construct, hold and call things: sequences, graphs, tables, and habits of Python."""

import abc
import dataclasses
import enum
import functools
import typing

import keras
import numpy as np
import tensorflow as tf

from zoo import case
from zoo.arguments import X, called
from zoo.patterns import SEQUENCES

BACKENDS = ("tensorflow",)

VOCABULARY = {"color": ["red", "green"], "size": ["s", "m", "l"]}
NUMERIC = ["age", "wage"]
CLASSES = 3
TOKENS = np.array([[1, 2, 0], [3, 1, 2]], dtype="int32")


class Positions(keras.layers.Layer):
    def __init__(self, size, length, width):
        super().__init__()
        self.tokens = keras.layers.Embedding(size, width, mask_zero=True)
        self.positions = keras.layers.Embedding(input_dim=length, output_dim=width)

    def call(self, x):
        return self.tokens(x) + self.positions(tf.range(start=0, limit=tf.shape(x)[-1], delta=1))

    def compute_mask(self, inputs, mask=None):
        return self.tokens.compute_mask(inputs)


class Cross(keras.layers.Layer):
    def __init__(self, width, heads):
        super().__init__()
        self.attention = keras.layers.MultiHeadAttention(num_heads=heads, key_dim=width)
        self.feed = keras.Sequential([keras.layers.Dense(5, activation="relu"), keras.layers.Dense(width)])

    def call(self, encoded, target):
        return self.feed(target + self.attention(target, encoded))


class Speech(keras.Model):
    def __init__(self, width=4, heads=2, decoders=2, classes=7):
        super().__init__()
        self.loss_metric = keras.metrics.Mean(name="loss")
        self.decoders = decoders
        self.inputs_encoder = keras.layers.Conv1D(width, 3, padding="same", activation="relu")
        self.inputs_decoder = Positions(classes, 3, width)
        self.encoder = keras.Sequential([self.inputs_encoder] + [keras.layers.Dense(width) for _ in range(2)])
        for number in range(decoders):
            setattr(self, f"dec_layer_{number}", Cross(width, heads))
        self.classifier = keras.layers.Dense(classes)

    def call(self, inputs):
        encoded, y = self.encoder(inputs[0]), self.inputs_decoder(inputs[1])
        for number in range(self.decoders):
            y = getattr(self, f"dec_layer_{number}")(encoded, y)
        return self.classifier(y)


@case()
def numbered_attributes_and_a_list_of_frames_and_tokens():
    return called(Speech(), [SEQUENCES, TOKENS])


class Attention(keras.layers.Layer):
    def __init__(self, units, kernel_initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        shape = (input_shape[0][-1], self.units)
        self.kernel = self.add_weight(shape=shape, trainable=True, initializer=self.kernel_initializer, name="kernel")
        self.built = True

    def call(self, inputs):
        states, edges = inputs
        messages = keras.ops.take(keras.ops.matmul(states, self.kernel), edges[:, 1], axis=0)
        return keras.ops.segment_sum(messages, edges[:, 0], num_segments=states.shape[0])


class Graph(keras.Model):
    def __init__(self, node_states, edges, units, heads, **kwargs):
        super().__init__(**kwargs)
        self.node_states = node_states
        self.edges = edges
        self.attention_layers = [Attention(units) for _ in range(heads)]
        self.output_layer = keras.layers.Dense(2)

    def call(self, indices, training=False):
        states = [layer([self.node_states, self.edges]) for layer in self.attention_layers]
        return keras.ops.take(self.output_layer(keras.ops.concatenate(states, axis=-1)), indices, axis=0)


@case()
def whole_graph_as_tensor_arguments():
    edges = keras.ops.convert_to_tensor(np.array([[0, 1], [1, 2], [2, 5], [4, 3]]), dtype="int32")
    return called(Graph(keras.ops.convert_to_tensor(X), edges, 3, heads=2), np.array([0, 2, 4], dtype="int32"))


class DecisionTree(keras.Model):
    def __init__(self, depth, features, rate):
        super().__init__()
        self.leaves = 2**depth
        chosen = np.random.choice(np.arange(features), int(features * rate), replace=False)
        self.mask = keras.ops.convert_to_tensor(np.eye(features)[chosen], dtype="float32")
        self.pi = self.add_weight(initializer="random_normal", shape=[self.leaves, CLASSES], dtype="float32")
        self.decide = keras.layers.Dense(units=self.leaves, activation="sigmoid", name="decision")

    def call(self, features):
        decided = self.decide(keras.ops.matmul(features, keras.ops.transpose(self.mask)))
        return keras.ops.matmul(decided, keras.activations.softmax(self.pi))


class Forest(keras.Model):
    def __init__(self, trees, *, depth, features, rate=0.5):
        super().__init__()
        self.ensemble = []
        for _ in range(trees):
            self.ensemble.append(DecisionTree(depth, features, rate))

    def call(self, inputs):
        outputs = keras.ops.zeros([keras.ops.shape(inputs)[0], CLASSES])
        for tree in self.ensemble:
            outputs += tree(inputs)
        return outputs / len(self.ensemble)


@case()
def forest_of_models_with_random_feature_masks():
    return called(Forest(3, depth=2, features=4), X)


class Selection(keras.layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.units = units
        self.embeddings = dict()
        for name in VOCABULARY:
            self.embeddings[name] = keras.layers.Embedding(len(VOCABULARY[name]), self.units, name=name)
        self.projections = {name: keras.layers.Dense(units=self.units) for name in NUMERIC}

    def call(self, inputs):
        def weighted(values):
            import math

            return keras.ops.sum(keras.ops.stack(values, axis=1), axis=1) * math.sqrt(2.0)

        found = []
        for name in inputs:
            if name in VOCABULARY:
                largest = self.embeddings[name].input_dim - 1
                found.append(self.embeddings[name](keras.ops.clip(inputs[name], 0, largest)))
            else:
                found.append(self.projections[name](keras.ops.expand_dims(inputs[name], -1)))
        return weighted(found)

    def build(self):
        self.built = True


class Table(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.select = Selection(units)
        self.head = keras.layers.Dense(1)

    def call(self, inputs):
        return self.head(self.select(inputs))


@case()
def layers_by_feature_name_and_a_build_without_arguments():
    table = {"age": X[:, 0], "color": np.array([0, 1, 1, 0, 1, 0]), "size": np.arange(6) % 3, "wage": X[:, 1]}
    return called(Table(3), table)


class GraphInfo:
    def __init__(self, edges: tuple[list, list], nodes: int):
        self.edges = edges
        self.nodes = nodes


class GraphConv(keras.layers.Layer):
    def __init__(self, width, info: GraphInfo, aggregation="mean", activation: typing.Optional[str] = None, **kwargs):  # noqa: UP045
        super().__init__(**kwargs)
        self.info = info
        self.aggregation = aggregation
        start = keras.initializers.GlorotUniform()(shape=(4, width), dtype="float32")
        self.weight = tf.Variable(initial_value=start, trainable=True)
        self.activation = keras.layers.Activation(activation)

    def call(self, features: tf.Tensor):
        gathered = tf.gather(features, self.info.edges[1])
        aggregate = {"sum": tf.math.unsorted_segment_sum, "mean": tf.math.unsorted_segment_mean}[self.aggregation]
        gathered = aggregate(gathered, self.info.edges[0], num_segments=self.info.nodes)
        return self.activation(tf.matmul(gathered, self.weight))


class Traffic(keras.Model):
    def __init__(self, info, params=None):
        super().__init__()
        params = {"aggregation": "mean", "activation": None} if params is None else params
        self.conv = GraphConv(3, info, **params)
        self.lstm = keras.layers.LSTM(2, activation="relu")

    def call(self, inputs):
        x = self.conv(tf.transpose(inputs, [2, 0, 1, 3]))
        shape = tf.shape(x)
        return self.lstm(tf.reshape(x, (shape[0] * shape[1], shape[2], 3)))


@case()
def graph_in_a_plain_object_and_raw_weights():
    info = GraphInfo(edges=([0, 1, 1], [1, 0, 2]), nodes=3)
    inputs = np.linspace(-1, 1, 2 * 5 * 3 * 4, dtype="float32").reshape(2, 5, 3, 4)
    return called(Traffic(info, {"aggregation": "sum", "activation": "tanh"}), inputs)


class Router(keras.layers.Layer):
    def __init__(self, experts, capacity):
        self.experts = experts
        self.route = keras.layers.Dense(units=experts)
        self.capacity = capacity
        super().__init__()

    def call(self, inputs, training=False):
        routed = keras.activations.softmax(self.route(inputs), axis=-1)
        self.add_loss(tf.reduce_mean(routed))
        return routed


class Experts(keras.Model):
    def __init__(self, number, width):
        self.number = number
        self.experts = [keras.Sequential([keras.layers.Dense(5), keras.layers.Dense(width)]) for _ in range(number)]
        self.router = Router(number, 2)
        super().__init__()

    def call(self, inputs):
        routed = self.router(inputs)
        outputs = tf.stack([expert(inputs) for expert in self.experts], axis=1)
        return tf.einsum("be,bew->bw", routed, outputs)


@case()
def layers_set_before_the_base_constructor():
    return called(Experts(2, 3), X)


class WeightNorm(keras.layers.Layer):
    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def build(self, input_shape):
        self.layer.build(input_shape)
        self.v = self.layer.kernel
        self.g = self.add_weight(name="wn_scale", shape=(self.v.shape[-1],), initializer="ones")
        super().build(input_shape)

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.layer.kernel * (self.g / keras.ops.norm(self.layer.kernel, axis=0)))


class Normed(keras.Model):
    def __init__(self, width):
        super().__init__()
        self.stack = keras.Sequential([WeightNorm(keras.layers.Dense(width, use_bias=False)), keras.layers.ReLU()])

    def call(self, x):
        return self.stack(x)


@case()
def wrapper_that_builds_its_layer_and_aliases_its_kernel():
    return called(Normed(5), X)


class Calling(keras.Model):
    def __init__(self, width):
        super().__init__()
        self.width = width
        self.dense = keras.layers.Dense(width)

    def __call__(self, x, *args, **kwargs):
        return super().__call__(keras.ops.convert_to_tensor(x) * 2.0, *args, **kwargs)

    def call(self, x):
        return self.dense(x)


@case()
def dunder_call_overridden():
    return called(Calling(3), X)


class Grafted(keras.Model):
    def __init__(self, width):
        super().__init__()
        self.dense = keras.layers.Dense(width)

    def call(self, x):
        return self.scale(self.dense(x))


def scale(self, x):
    return x * 3.0


Grafted.scale = scale


@case()
def method_grafted_onto_the_class():
    return called(Grafted(3), X)


class Kind(str, enum.Enum):
    MEAN = "mean"
    MAX = "max"


@dataclasses.dataclass
class Block:
    width: int
    activation: typing.Any = tf.nn.gelu
    kind: Kind = Kind.MEAN


@dataclasses.dataclass
class Config:
    blocks: list[Block]
    extra: dict = dataclasses.field(default_factory=dict)
    depth: int = dataclasses.field(init=False, default=0)

    def __post_init__(self):
        self.depth = len(self.blocks)


class Configured(keras.Model):
    def __init__(self, cfg: Config, options: dict, names=("a", "b")):
        super().__init__()
        self.cfg = cfg
        self.options = options.copy()
        self.options["units"] = 2
        self.names = list(names)
        self.blocks = {
            name: keras.layers.Dense(block.width, activation=block.activation)
            for name, block in zip(self.names, cfg.blocks, strict=True)
        }
        self.head = keras.layers.Dense(self.options["units"], activation=self.options["activation"])

    def call(self, x):
        for name in self.names[: self.cfg.depth]:
            x = self.blocks[name](x)
        return self.head(x) if self.cfg.blocks[0].kind is Kind.MAX else x


def leaky(x, *, slope):
    return keras.ops.where(x > 0, x, x * slope)


@case()
def nested_dataclasses_copied_options_and_partials():
    cfg = Config([Block(3, functools.partial(functools.partial(leaky), slope=0.1), Kind.MAX), Block(4)], {"seed": 1})
    return called(Configured(cfg, {"activation": functools.partial(keras.activations.elu, alpha=0.5)}), X)


class Encoding(abc.ABC):
    @abc.abstractmethod
    def encode(self, x): ...

    def decode(self, x):
        return self.back(self.encode(x))


class Losses:
    factor = 0.5

    @property
    def tracked(self):
        return {"loss": self.tracker}


class Mixed(Encoding, Losses, keras.Model):
    kinds: typing.ClassVar = {"relu": keras.activations.relu}

    def __init__(self, width, kind="relu", **kwargs):
        super().__init__(**kwargs)
        self.forward = keras.layers.Dense(width)
        self.back = keras.layers.Dense(4)
        self.act = self.kinds[kind]
        self.tracker = keras.metrics.Mean(name="loss")

    def encode(self, x):
        return self.act(self.forward(x)) * self.factor

    def call(self, x):
        return self.decode(x)


class Deeper(Mixed):
    def __init__(self, *args, bias=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.bias = bias

    def call(self, x):
        return super().call(x) + self.bias


@case()
def mixins_an_abstract_base_and_forwarded_arguments():
    return called(Deeper(3, bias=2.0, name="deeper"), X)


class Distance(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)

    def call(self, anchor, positive, negative):
        near = keras.ops.sum(keras.ops.square(anchor - positive), -1)
        return near, keras.ops.sum(keras.ops.square(anchor - negative), -1)


def siamese(width):
    embedding = keras.Sequential([keras.Input((4,)), keras.layers.Dense(width)], name="Embedding")
    inputs = [keras.Input((4,), name=name) for name in ("anchor", "positive", "negative")]
    return keras.Model(inputs, Distance()(*[embedding(item) for item in inputs]))


class Siamese(keras.Model):
    def __init__(self, siamese_network, margin=0.5):
        super().__init__()
        self.siamese_network = siamese_network
        self.margin = margin
        self.loss_tracker = keras.metrics.Mean(name="loss")

    def call(self, inputs):
        return self.siamese_network(inputs)

    def train_step(self, data):
        with tf.GradientTape() as tape:
            near, far = self.siamese_network(data[0])
            loss = tf.maximum(near - far + self.margin, 0.0)
        gradients = tape.gradient(loss, self.siamese_network.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.siamese_network.trainable_weights, strict=True))
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}

    @property
    def metrics(self):
        return [self.loss_tracker]


@case()
def siamese_network_with_three_inputs():
    model = Siamese(siamese(3), margin=0.25)
    model.compile(optimizer=keras.optimizers.Adam(0.01), weighted_metrics=[])
    model.fit([X, X * 2, X * 3], verbose=0)
    return called(model, [X, X * 2, X * 3])


class Network(keras.Model):
    def __init__(self, width):
        super().__init__()
        self.project = keras.Sequential([keras.layers.Dense(width), keras.layers.BatchNormalization()])

    def call(self, x, training=False):
        return self.project(x, training=training)


class Bootstrap(keras.Model):
    def __init__(self, width, decay=0.9):
        super().__init__()
        self.online = Network(width)
        self.target = Network(width)
        self.target.trainable = False
        self.decay = decay
        self.steps = 0

    def call(self, x, training=False):
        return self.online(x, training=training), self.target(x)

    def update(self):
        self.steps += 1
        pairs = zip(self.online.get_weights(), self.target.get_weights(), strict=True)
        self.target.set_weights([self.decay * old + (1 - self.decay) * new for new, old in pairs])


@case()
def target_network_that_follows():
    model, inputs = called(Bootstrap(3), X)
    model.update()
    return model, inputs


class FitOnly(keras.Model):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


@case()
def subclass_that_only_overrides_train_step_made_from_inputs_and_outputs():
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(6, activation="relu")(inputs)
    model = FitOnly(inputs=inputs, outputs=keras.layers.Dense(2)(keras.layers.Add()([hidden, hidden * 2.0])))
    model.compile(optimizer="adam", loss="mse")
    model.fit(X, X[:, :2], verbose=0)
    return called(model, X)


class Scored(keras.Model):
    def __init__(self, *args, factor=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.factor = factor

    def score(self, x):
        return self(x) * self.factor


@case()
def subclass_made_from_inputs_and_outputs_with_an_argument_of_its_own():
    inputs = keras.Input((4,), name="features")
    return called(Scored(inputs, keras.layers.Dense(2)(inputs), factor=3.0, name="scored"), X)


class Looping(keras.Model):
    def __init__(self, width):
        super().__init__()
        self.cell = keras.layers.LSTMCell(width)
        self.out = keras.layers.Dense(2)

    @tf.function
    def call(self, x):
        state = [tf.zeros((tf.shape(x)[0], 3)), tf.zeros((tf.shape(x)[0], 3))]
        y = tf.zeros((tf.shape(x)[0], 3))
        for step in tf.range(tf.shape(x)[1]):
            y, state = self.cell(x[:, step], state)
        if tf.reduce_sum(y) > 1e6:
            y = y * 0.0
        return self.out(y)


@case()
def loop_and_branch_on_tensors():
    return called(Looping(3), SEQUENCES)


class Lookup(keras.Model):
    def __init__(self, vocabulary, ids):
        super().__init__()
        self.words = keras.layers.StringLookup(vocabulary=vocabulary, mask_token=None)
        self.ids = keras.layers.IntegerLookup(vocabulary=ids)
        self.table = keras.layers.Embedding(self.words.vocabulary_size(), 2)
        self.index = {term: number for number, term in enumerate(vocabulary)}

    def call(self, inputs):
        return self.table(self.words(inputs["word"])) + keras.ops.cast(self.ids(inputs["id"]), "float32")[:, None]


@case()
def vocabularies_as_constructor_arguments():
    inputs = {"id": np.array([7, 9, 1], dtype="int32"), "word": np.array(["red", "", "blue"], dtype=object)}
    model = Lookup(["red", "blue", ""], np.array([7, 8, 9]))
    model({name: tf.constant(array.tolist()) for name, array in inputs.items()})
    return model, (inputs,)


class Parent(keras.Model):
    def __init__(self):
        super().__init__()
        self.children = tuple(Child(self, number) for number in range(2))

    def call(self, x):
        for child in self.children:
            x = child(x)
        return x


class Child(keras.layers.Layer):
    def __init__(self, parent, number):
        super().__init__()
        self.parent_of = lambda: parent
        self.number = number
        self.dense = keras.layers.Dense(4)

    def call(self, x):
        return self.dense(x) * len(self.parent_of().children) + self.number


@case()
def children_that_know_their_parent():
    return called(Parent(), X)


class Forgetful(keras.layers.Layer):
    def __init__(self, units, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(units)
        self.factor = factor
        self.units = units

    def get_config(self):
        return {**super().get_config(), "units": self.units}

    def call(self, x):
        return self.dense(x) * self.factor


class Gate:
    def __init__(self, width):
        self.width = width

    def get_config(self):
        return {"width": self.width}


class Handed(keras.layers.Layer):
    def __init__(self, gate, **kwargs):
        super().__init__(**kwargs)
        self.gate = gate
        self.dense = keras.layers.Dense(gate.width)

    def get_config(self):
        return {"gate": self.gate}

    @classmethod
    def from_config(cls, config):
        return cls(Gate(**config["gate"]["config"]))

    def call(self, x):
        return self.dense(x)


class Around(keras.Model):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def call(self, x):
        return self.second(self.first(x))


@case()
def arguments_whose_own_config_is_incomplete_or_read_as_keras_writes_it():
    return called(Around(Forgetful(3, factor=5.0), Handed(Gate(2))), X)


class Created(keras.Model):
    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, width, *, bias=1.0):
        super().__init__()
        self.dense = keras.layers.Dense(width)
        self.bias = bias

    def call(self, x, scale=None, shift=None):
        y = self.dense(x) if scale is None else self.dense(x) * scale
        return y + self.bias if shift is None else y + shift


@case()
def new_overridden_without_arguments_and_optional_inputs():
    model = Created(3, bias=2.0)
    model(X, None, X[:, :1])
    model(X[:2], None, X[:2, :1])
    return called(model, X, None, X[:, :1])


class Shapeless(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, x, scale):
        return self.dense(x) * scale

    def compute_output_shape(self, input_shape):
        return input_shape


class WithoutSummary(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = Shapeless()

    def call(self, x):
        return self.inner(x, scale=x[:, :1])


@case()
def layer_that_keras_cannot_summarise():
    return called(WithoutSummary(), X)


class Probing(keras.layers.Layer):
    """Finds out its output shape by calling itself, which draws from its generator."""

    def __init__(self, width):
        super().__init__()
        self.dense = keras.layers.Dense(width)
        self.dropout = keras.layers.Dropout(0.5)

    def call(self, x):
        return self.dense(x) + 0.0 * self.dropout(x, training=True)[:, :1]

    def compute_output_shape(self, input_shape):
        return tuple(self(keras.ops.zeros((1, *input_shape[1:]))).shape)


class Probed(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = Probing(3)

    def call(self, x):
        return self.inner(x)


@case()
def summary_that_calls_a_layer_which_draws():
    model = Probed()
    model(X)
    return called(model, X)
