package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// gate keeps consumers from the records of a topic until it opens: a transaction that begins every lane and stays open, past which nobody reads who reads what is committed
// (KIP-98, "last stable offset"). So several workers can share the lanes first, and begin at once.
type gate struct {
	client *kgo.Client
	lanes  int
	opened bool
}

// closeGate makes the gate of a topic without records.
func (b *bench) closeGate(ctx context.Context, topic string, lanes int) (*gate, error) {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(b.kafka.Brokers()...), kgo.TransactionalID(topic), kgo.TransactionTimeout(15*time.Minute), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return nil, fmt.Errorf("make a Kafka client: %w", err)
	}
	g := &gate{client: client, lanes: lanes}
	if err := client.BeginTransaction(); err != nil {
		return nil, fmt.Errorf("begin a transaction: %w", errors.Join(err, g.close(ctx)))
	}
	for lane := range lanes {
		rec := &kgo.Record{Topic: topic, Partition: int32(lane)}
		if err := client.ProduceSync(ctx, rec).FirstErr(); err != nil {
			return nil, fmt.Errorf("begin lane %d of topic %s: %w", lane, topic, errors.Join(err, g.close(ctx)))
		}
	}
	return g, nil
}

// open lets consumers go on. Its own records are aborted, so that nobody sees them.
func (g *gate) open(ctx context.Context) error {
	if err := g.client.EndTransaction(ctx, kgo.TryAbort); err != nil {
		return fmt.Errorf("abort a transaction: %w", err)
	}
	g.opened = true
	return nil
}

// records are how many offsets it takes before the lanes' first events.
func (g *gate) records() int64 { return int64(g.lanes) }

// close ends the client, and with it the transaction where it is still open.
func (g *gate) close(ctx context.Context) error {
	defer g.client.Close()
	if g.opened {
		return nil
	}
	return g.open(context.WithoutCancel(ctx))
}

// awaitGroup waits until so many workers share all lanes of a topic, and the first of them runs.
func (b *bench) awaitGroup(ctx context.Context, group string, workers []*worker, lanes int) error {
	admin, err := b.admin()
	if err != nil {
		return err
	}
	defer admin.Close()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	deadline := time.Now().Add(stalled)
	for {
		groups, err := admin.DescribeGroups(ctx, group)
		if err != nil {
			return fmt.Errorf("describe group %s: %w", group, err)
		}
		members, shared := 0, 0
		if g := groups[group]; g.State == "Stable" {
			members = len(g.Members)
			for _, m := range g.Members {
				if c, ok := m.Assigned.AsConsumer(); ok {
					for _, t := range c.Topics {
						shared += len(t.Partitions)
					}
				}
			}
		}
		if members == len(workers) && shared == lanes {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d workers share %d of %d lanes", members, len(workers), shared, lanes)
		}
		for _, w := range workers {
			if err := w.wait(ctx, tick.C); err != nil {
				return err
			}
		}
	}
}
