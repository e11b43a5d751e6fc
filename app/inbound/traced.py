"""What is recorded of a batch of messages."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from app.tracing.recorder import SpanKind, Tracer, recorded, recorded_batch
from app.wire.messages import KafkaMessage, traceparent_of_message


@contextmanager
def recorded_messages(tracer: Tracer, messages: Sequence[KafkaMessage], decoded: Sequence[object]) -> Iterator[None]:
    """Record a batch below its sampled messages; without one, some batches by themselves."""
    joined = [
        (event, trace, message)
        for message, event in zip(messages, decoded, strict=True)
        if (traceparent := traceparent_of_message(message)) is not None
        and (trace := tracer.begin(traceparent)) is not None
    ]
    alone = None if joined or not messages else tracer.begin()
    error = None
    traces = [(event, trace, None) for event, trace, _ in joined]
    try:
        with recorded_batch("messages", traces, len(messages)) if traces else recorded(alone):
            yield
    except BaseException as failed:
        error = type(failed).__name__
        raise
    finally:
        for _, trace, message in joined:
            attributes: dict[str, str | int | float] = {
                "messaging.system": "kafka",
                "messaging.operation.type": "process",
                "messaging.destination.name": message.topic,
                "messaging.destination.partition.id": str(message.partition),
                "messaging.kafka.offset": message.offset,
            }
            trace.end(f"process {message.topic}", SpanKind.CONSUMER, attributes, error=error)
        if alone is not None:
            attributes = {"messaging.system": "kafka", "messaging.batch.message_count": len(messages)}
            alone.end("process messages", SpanKind.CONSUMER, attributes, error=error)
