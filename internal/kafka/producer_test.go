package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"auditsink/config"
	"auditsink/internal/testkit"
)

func newProducer(t *testing.T, cfg config.Config, extra ...kgo.Opt) *Producer {
	t.Helper()
	producer, err := NewProducer(cfg, zap.NewNop(), extra...)
	require.NoError(t, err)
	t.Cleanup(producer.Close)
	return producer
}

func TestProducer(t *testing.T) {
	broker := testkit.Kafka(t)
	topic := testkit.Name(t)
	broker.CreateTopic(t, topic, 1, nil)
	producer := newProducer(t, settings(broker.Brokers()))
	require.NoError(t, producer.Flush(soon(t)), "nothing to flush")

	const records = 1000
	for i := range records {
		var key []byte
		if i%2 == 0 {
			key = fmt.Append(nil, i)
		}
		producer.Produce(soon(t), topic, key, fmt.Appendf(nil, "value %d\r\n", i))
	}
	require.NoError(t, producer.Flush(soon(t)))
	require.EqualValues(t, records, producer.Acknowledged())

	consumer := connect(t, settings(broker.Brokers()), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	var got []*kgo.Record
	for len(got) < records {
		fetches := consumer.PollFetches(soon(t))
		require.NoError(t, fetches.Err())
		got = append(got, fetches.Records()...)
	}
	require.Len(t, got, records)
	for i, r := range got {
		require.Equal(t, fmt.Sprintf("value %d\r\n", i), string(r.Value))
		require.Equal(t, i%2 == 1, r.Key == nil, "record %d", i)
		require.GreaterOrEqual(t, r.ProducerID, int64(0), "not idempotent")
	}
}

// A failure is reported once, with the count and the first cause, and doesn't hide what was stored.
func TestProducerReportsFailures(t *testing.T) {
	broker := testkit.Kafka(t)
	topic := testkit.Name(t)
	broker.CreateTopic(t, topic, 1, nil)
	producer := newProducer(t, settings(broker.Brokers()))
	producer.Produce(soon(t), topic, nil, []byte("fine"))
	for range 3 {
		producer.Produce(soon(t), "no-such-topic", nil, []byte("confidential"))
	}
	err := producer.Flush(soon(t))
	require.ErrorContains(t, err, `3 records were not stored, the first: the cluster doesn't have the topic`)
	require.ErrorContains(t, err, `publish to topic "no-such-topic"`)
	require.ErrorIs(t, err, kerr.UnknownTopicOrPartition)
	require.NotContains(t, err.Error(), "confidential")
	require.True(t, Fatal(err))
	require.EqualValues(t, 1, producer.Acknowledged())
	require.NoError(t, producer.Flush(soon(t)), "reported twice")
}

// A record larger than the topic allows fails alone.
func TestProducerRecordTooLarge(t *testing.T) {
	broker := testkit.Kafka(t)
	topic := testkit.Name(t)
	broker.CreateTopic(t, topic, 1, map[string]string{"max.message.bytes": "1000"})
	producer := newProducer(t, settings(broker.Brokers()), kgo.ProducerBatchCompression(kgo.NoCompression()))
	producer.Produce(soon(t), topic, nil, make([]byte, 2000))
	err := producer.Flush(soon(t))
	require.ErrorIs(t, err, kerr.MessageTooLarge)
	require.False(t, Fatal(err))
	producer.Produce(soon(t), topic, nil, []byte("small"))
	require.NoError(t, producer.Flush(soon(t)))
	require.EqualValues(t, 1, producer.Acknowledged())
}

// An end of ctx leaves records behind, and Flush says how many; so does Produce when it had to wait.
func TestProducerGivesUpWithItsContext(t *testing.T) {
	producer := newProducer(t, settings([]string{"127.0.0.1:1"}), kgo.MaxBufferedRecords(2))
	producer.Produce(soon(t), "t", nil, []byte("a"))
	producer.Produce(soon(t), "t", nil, []byte("b"))
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("told to stop"))
	producer.Produce(ended, "t", nil, []byte("waits for a place"))
	// The client answers to the third by itself, and to the others when it is closed.
	var err error
	require.Eventually(t, func() bool {
		err = producer.Flush(ended)
		return strings.HasPrefix(err.Error(), "1 records were not stored")
	}, time.Minute, time.Millisecond)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "2 records are not acknowledged yet")
	require.ErrorContains(t, producer.Flush(ended), "2 records are not acknowledged yet")
	producer.Close()
	require.ErrorContains(t, producer.Flush(soon(t)), "2 records were not stored")
	require.Zero(t, producer.Acknowledged())
}

// A record that the client refuses before it buffers it is no less a failure.
func TestProducerReportsWhatWasNeverBuffered(t *testing.T) {
	producer := newProducer(t, settings([]string{"127.0.0.1:1"}), kgo.MaxBufferedBytes(1000))
	for range 200 {
		producer.Produce(soon(t), "t", nil, make([]byte, 2000))
		require.ErrorIs(t, producer.Flush(soon(t)), kerr.MessageTooLarge)
	}
}
