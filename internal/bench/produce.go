package main

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"auditsink/config"
	"auditsink/internal/kafka"
	"auditsink/internal/sample"
)

// newTopic makes a topic, and a producer that spreads records evenly over its lanes.
func (b *bench) newTopic(ctx context.Context, topic string, lanes int, extra ...kgo.Opt) (*kafka.Producer, error) {
	if err := b.makeTopic(ctx, topic, lanes); err != nil {
		return nil, err
	}
	return b.newProducer(extra...)
}

func (b *bench) makeTopic(ctx context.Context, topic string, lanes int) error {
	return b.kafka.NewTopic(ctx, topic, int32(lanes), nil) //nolint:gosec // a small number
}

// newProducer makes one that spreads records evenly over a topic's lanes.
func (b *bench) newProducer(extra ...kgo.Opt) (*kafka.Producer, error) {
	cfg := config.Default()
	cfg.KafkaBrokers = b.kafka.Brokers()
	return kafka.NewProducer(cfg, zap.NewNop(), append(extra, kgo.RecordPartitioner(kgo.BasicConsistentPartitioner(inTurn)))...)
}

// fillFrom makes a topic of a source's next events, without their rows.
func (b *bench) fillFrom(ctx context.Context, topic string, s *source, events int) error {
	if err := b.makeTopic(ctx, topic, s.lanes); err != nil {
		return err
	}
	return b.publish(ctx, topic, s, events)
}

// publish adds a source's next events to a topic.
func (b *bench) publish(ctx context.Context, topic string, s *source, events int) error {
	producer, err := b.newProducer()
	if err != nil {
		return err
	}
	defer producer.Close()
	for range events {
		_, rec := s.next()
		producer.Produce(ctx, topic, rec.Key, rec.Value)
	}
	if err := producer.Flush(ctx); err != nil {
		return fmt.Errorf("fill topic %s: %w", topic, err)
	}
	return nil
}

func (b *bench) admin() (*kadm.Client, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(b.kafka.Brokers()...))
	if err != nil {
		return nil, fmt.Errorf("make a Kafka client: %w", err)
	}
	return kadm.NewClient(client), nil
}

func (b *bench) deleteTopic(ctx context.Context, topic string) error {
	admin, err := b.admin()
	if err != nil {
		return err
	}
	defer admin.Close()
	if _, err := admin.DeleteTopic(ctx, topic); err != nil {
		return fmt.Errorf("delete topic %s: %w", topic, err)
	}
	return nil
}

// fill publishes so many events as fast as it can.
func fill(ctx context.Context, producer *kafka.Producer, topic string, events int) error {
	generator := sample.New(seed)
	for range events {
		key, value := generator.Next(time.Now())
		producer.Produce(ctx, topic, key, value)
	}
	if err := producer.Flush(ctx); err != nil {
		return fmt.Errorf("fill topic %s: %w", topic, err)
	}
	return nil
}

// inTurn spreads records evenly, where hashing the keys of a dozen clinics would not.
func inTurn(string) func(*kgo.Record, int) int {
	turn := -1
	return func(_ *kgo.Record, lanes int) int {
		turn++
		return turn % lanes
	}
}

// pace publishes so many events a second until stop is closed, and returns how many there are in the topic then. Each lane gets its part of them every few milliseconds.
// An event's time is when it was due: where the producer is held up, what it publishes late is late.
func pace(ctx context.Context, producer *kafka.Producer, topic string, perSecond int, stop <-chan struct{}) (int64, error) {
	generator := sample.New(seed)
	generator.Prompt()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	begin, events := time.Now(), int64(0)
	for {
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-stop:
			if err := producer.Flush(ctx); err != nil {
				return 0, fmt.Errorf("publish to topic %s: %w", topic, err)
			}
			return events, nil
		case now := <-tick.C:
			for due := int64(now.Sub(begin).Seconds() * float64(perSecond)); events < due; events++ {
				at := begin.Add(time.Duration(float64(events+1) / float64(perSecond) * float64(time.Second)))
				key, value := generator.Next(at)
				producer.Produce(ctx, topic, key, value)
			}
		}
	}
}
