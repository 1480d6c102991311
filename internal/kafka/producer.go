package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"auditsink/config"
)

// maxBuffered is how many bytes of records a producer holds until Produce waits.
const maxBuffered = 32 << 20

// Producer publishes records: acknowledged by all in-sync replicas, and idempotent, so that a retry adds no second
// record. It is safe for concurrent use.
type Producer struct {
	client *kgo.Client
	cfg    config.Config

	mu      sync.Mutex    // guards the following, which the client's goroutine writes too
	waiting int64         // handed over, neither acknowledged nor failed
	settled chan struct{} // closed when waiting comes to 0
	acked   int64
	failed  int64 // since the last Flush
	first   error // of those failed
}

// NewProducer makes a producer, which connects with the first record. The client retries what goes wrong with a
// connection without end: see to [CheckTopics] first. extra are further options of the client.
func NewProducer(cfg config.Config, log *zap.Logger, extra ...kgo.Opt) (*Producer, error) {
	opts, err := Options(cfg, log)
	if err != nil {
		return nil, err
	}
	opts = append(opts, kgo.RequiredAcks(kgo.AllISRAcks()), kgo.MaxBufferedBytes(maxBuffered))
	client, err := kgo.NewClient(append(opts, extra...)...)
	if err != nil {
		return nil, fmt.Errorf("make a Kafka client: %w", err)
	}
	return &Producer{client: client, cfg: cfg}, nil
}

// Produce hands a record over, a nil key for none, and waits only while the buffer is full. Neither slice may be
// changed until Flush returns. Whether the record was stored, Flush tells.
func (p *Producer) Produce(ctx context.Context, topic string, key, value []byte) {
	p.mu.Lock()
	if p.waiting++; p.waiting == 1 {
		p.settled = make(chan struct{})
	}
	p.mu.Unlock()
	p.client.Produce(ctx, &kgo.Record{Topic: topic, Key: key, Value: value}, p.done)
}

// done takes the client's answer to one record.
func (p *Producer) done(rec *kgo.Record, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.acked++
	} else if p.failed++; p.first == nil {
		p.first = fmt.Errorf("publish to topic %q: %w", rec.Topic, err)
	}
	if p.waiting--; p.waiting == 0 {
		close(p.settled)
	}
}

// Acknowledged returns how many records the brokers have stored since the start.
func (p *Producer) Acknowledged() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.acked
}

// Flush waits until every record handed over is stored or failed. The error tells how many failed since the last
// Flush and why the first did, and how many are still under way where ctx ended first.
func (p *Producer) Flush(ctx context.Context) error {
	err := p.client.Flush(ctx)
	if err == nil {
		err = p.settle(ctx)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("%d records are not acknowledged yet: %w", p.waiting, err)
	}
	if p.first != nil {
		err = errors.Join(fmt.Errorf("%d records were not stored, the first: %w", p.failed, Explain(p.first, p.cfg)), err)
		p.failed, p.first = 0, nil
	}
	return err
}

// settle waits for the client's answer to every record. Its own flush doesn't wait for those that never came into its
// buffer: too large, or given up while it was full.
func (p *Producer) settle(ctx context.Context) error {
	p.mu.Lock()
	settled, waiting := p.settled, p.waiting
	p.mu.Unlock()
	if waiting == 0 {
		return nil
	}
	select {
	case <-settled:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close ends the client. What was not flushed is lost.
func (p *Producer) Close() { p.client.Close() }
