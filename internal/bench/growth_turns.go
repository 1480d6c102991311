package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// turn is what one of those who let a table grow does in each slice.
type turn struct {
	name string
	side *growthSide
	// prepare gets so many rows ready, which isn't timed; store stores them, and returns how that got on.
	prepare func(ctx context.Context, rows int) error
	store   func(ctx context.Context, rows int) ([]point, error)
}

// ceilingLanes is what the IDs of the ceiling's lanes begin with: far above those that the worker gets.
const ceilingLanes = 1000

// growthTurns are those of the ceiling, a worker and, with all indexes, Debezium. Their processes and connections are there from the first slice to the last: end, which isn't nil once something is
// there to end, ends them after what was measured has ended with an error or without, and returns why anything failed.
func (b *bench) growthTurns(ctx context.Context, db *database, f *growthFigures) (turns []turn, end func(context.Context, error) error, err error) {
	begin := time.Now().Add(-time.Duration(b.growth.events) * growthPeriod)
	s := newSource(b.lanes, func(i int) time.Time { return begin.Add(time.Duration(i) * growthPeriod) })
	s.firstLane = ceilingLanes
	s.comparable()
	end = func(_ context.Context, err error) error { return err }
	after := func(more func(context.Context, error) error) {
		before := end
		end = func(ctx context.Context, err error) error { return before(ctx, more(ctx, err)) }
	}

	conns, closing, err := connectAll(ctx, db.url, b.connections)
	if err != nil {
		return nil, end, err
	}
	after(func(ctx context.Context, err error) error {
		return errors.Join(err, closing(context.WithoutCancel(ctx)))
	})
	var chunks [][]byte
	turns = append(turns, turn{
		"ceiling", &f.Ceiling,
		func(_ context.Context, rows int) (err error) {
			chunks, err = s.encode(rows, func(_, _ []byte) {})
			return err
		},
		func(ctx context.Context, _ int) ([]point, error) { return copyChunks(ctx, conns, chunks) },
	})

	// sink is the turn of a process that reads a topic.
	sink := func(name, topic string, side *growthSide, p *process, stored func(context.Context) (int64, error)) (turn, error) {
		feed, err := b.newFeed(topic)
		if err != nil {
			return turn{}, err
		}
		after(func(_ context.Context, err error) error { feed.client.Close(); return err })
		return turn{
			name, side,
			func(ctx context.Context, rows int) error { return feed.publish(ctx, s, rows) },
			func(ctx context.Context, rows int) (progress []point, err error) {
				before, err := stored(ctx)
				if err != nil {
					return nil, err
				}
				if err := feed.commit(ctx); err != nil {
					return nil, err
				}
				// The marker of the last commit may be counted now, so that it seems to be a row a lane more.
				return progress, p.follow(ctx, func(ctx context.Context) (int64, error) {
					now, err := stored(ctx)
					return min(now-before, int64(rows)), err
				}, int64(rows), func(p point) error { progress = append(progress, p); return nil })
			},
		}, nil
	}

	topic := fmt.Sprintf("bench-growth-%s-%d", f.Variant, f.Round)
	if err := b.makeTopic(ctx, topic, b.lanes); err != nil {
		return nil, end, err
	}
	w, err := b.startWorker(ctx, db, topic, topic, topic, b.copies(1))
	if err != nil {
		return nil, end, err
	}
	after(w.end)
	if _, err := w.awaitReady(ctx); err != nil {
		return nil, end, err
	}
	ours, err := sink("worker", topic, &f.Worker, w.process, db.stored)
	if err != nil {
		return nil, end, err
	}
	turns = append(turns, ours)
	if f.Variant != allIndexes {
		return turns, end, nil
	}

	topic += "-debezium"
	if err := b.makeTopic(ctx, topic, b.lanes); err != nil {
		return nil, end, err
	}
	c, err := b.startDebezium(ctx, db, topic, topic)
	if err != nil {
		return nil, end, err
	}
	after(c.end)
	if err := c.awaitReady(ctx); err != nil {
		return nil, end, err
	}
	f.Debezium = &growthSide{}
	var last int64 // of the sequence, once this turn's rows are in
	beside, err := sink("Debezium", topic, f.Debezium, c.process, func(ctx context.Context) (int64, error) { return db.inserted(ctx, last) })
	if err != nil {
		return nil, end, err
	}
	prepare := beside.prepare
	beside.prepare = func(ctx context.Context, rows int) (err error) {
		if last, err = db.inserted(ctx, 0); err != nil {
			return err
		}
		last += int64(rows)
		return prepare(ctx, rows)
	}
	return append(turns, beside), end, nil
}

// feed is a topic whose sink stores a part of it only when it is told to: events are published in a transaction, and a sink that reads what is committed gets them with its commit (KIP-98).
type feed struct {
	client *kgo.Client
	topic  string
}

func (b *bench) newFeed(topic string) (*feed, error) {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(b.kafka.Brokers()...), kgo.TransactionalID(topic), kgo.TransactionTimeout(15*time.Minute), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return nil, fmt.Errorf("make a Kafka client: %w", err)
	}
	return &feed{client, topic}, nil
}

// publish publishes a source's next events, which nobody gets before commit.
func (f *feed) publish(ctx context.Context, s *source, events int) error {
	if err := f.client.BeginTransaction(); err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	failed := kgo.AbortingFirstErrPromise(f.client)
	for range events {
		lane, rec := s.next()
		f.client.Produce(ctx, &kgo.Record{Topic: f.topic, Partition: int32(lane), Key: rec.Key, Value: rec.Value}, failed.Promise()) //nolint:gosec // a small number
	}
	if err := errors.Join(f.client.Flush(ctx), failed.Err()); err != nil {
		return fmt.Errorf("fill topic %s: %w", f.topic, err)
	}
	return nil
}

func (f *feed) commit(ctx context.Context) error {
	if err := f.client.EndTransaction(ctx, kgo.TryCommit); err != nil {
		return fmt.Errorf("commit a transaction: %w", err)
	}
	return nil
}
