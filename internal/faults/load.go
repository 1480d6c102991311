package faults

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// load sends invented events at a bounded rate, from a goroutine of its own, and keeps the ledger.
type load struct {
	ledger *ledger
	client *kgo.Client
	events *inventor
	// lanes is among how many partitions the records are dealt out.
	lanes int32

	cancel context.CancelFunc
	done   chan struct{}
	once   sync.Once
	err    error // what ended it too early; to be read when it has ended
}

// loadOptions say how a load sends.
type loadOptions struct {
	into    *ledger // the scenario's first unless given
	brokers []string
	lanes   int32
	rate    int // events a second
	limit   int // events altogether
	recipe  recipe
	// through is the address that all connections to brokers go to, where it isn't empty.
	through string
	// transactional sends in transactions, every third of which is aborted.
	transactional bool
}

// startLoad begins to send. stop must follow.
func startLoad(ctx context.Context, l *ledger, tag string, seed uint64, o loadOptions) (*load, error) {
	opts := []kgo.Opt{
		kgo.SeedBrokers(o.brokers...), kgo.DefaultProduceTopic(l.into.topic), kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(5 * time.Millisecond), kgo.MaxBufferedRecords(2000),
		// A broker that is away, or comes back elsewhere, is found again soon.
		kgo.ProduceRequestTimeout(5 * time.Second), kgo.RequestTimeoutOverhead(5 * time.Second),
		kgo.RetryBackoffFn(func(int) time.Duration { return 100 * time.Millisecond }), kgo.MetadataMinAge(100 * time.Millisecond),
	}
	if o.through != "" {
		dialer := &net.Dialer{Timeout: 2 * time.Second}
		opts = append(opts, kgo.Dialer(func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, o.through)
		}))
	} else {
		opts = append(opts, kgo.DialTimeout(2*time.Second))
	}
	if o.transactional {
		opts = append(opts, kgo.TransactionalID(tag), kgo.TransactionTimeout(time.Minute))
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("make a producer: %w", err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := &load{
		ledger: l, client: client, events: newInventor(tag, seed, o.recipe), lanes: o.lanes,
		cancel: cancel, done: make(chan struct{}),
	}
	go func() {
		defer close(p.done)
		p.run(ctx, o)
	}()
	return p, nil
}

// plenty is after how many events a load without a limit sends no more than a tenth of its rate: a scenario that takes long must neither drown nor starve.
const plenty = 10_000

// run sends until ctx ends or the limit is reached.
func (p *load) run(ctx context.Context, o loadOptions) {
	const step = 20 * time.Millisecond
	each := max(1, o.rate*int(step)/int(time.Second))
	tick := time.NewTicker(step)
	defer tick.Stop()
	sent := 0
	for ticks := 0; o.limit == 0 || sent < o.limit; ticks++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if o.limit == 0 && sent > plenty && ticks%10 != 0 {
			continue
		}
		if o.limit > 0 {
			each = min(each, o.limit-sent)
		}
		sent += each
		if !o.transactional {
			for range each {
				p.send(p.events.invent(), false)
			}
			continue
		}
		if p.err = p.transact(each, p.events.rng.IntN(3) > 0); p.err != nil {
			return
		}
	}
}

// send sends one record to a lane. It waits only where very many are under way.
func (p *load) send(r *record, tentative bool) {
	r.kgo.Partition = p.events.rng.Int32N(p.lanes)
	p.ledger.add(r)
	p.client.Produce(context.Background(), r.kgo, func(_ *kgo.Record, err error) { p.ledger.answer(r, tentative, err) })
}

// transact sends n records in a transaction and commits or aborts it.
func (p *load) transact(n int, commit bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := p.client.BeginTransaction(); err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	records := make([]*record, n)
	for i := range records {
		records[i] = p.events.invent()
		p.send(records[i], true)
	}
	if err := p.client.Flush(ctx); err != nil {
		return fmt.Errorf("flush a transaction: %w", err)
	}
	end, ended := kgo.TryAbort, aborted
	if commit {
		end, ended = kgo.TryCommit, acknowledged
	}
	if err := p.client.EndTransaction(ctx, end); err != nil {
		p.ledger.settle(records, uncertain)
		return fmt.Errorf("end a transaction: %w", err)
	}
	p.ledger.settle(records, ended)
	return nil
}

// stop ends the sending and waits until the brokers have answered for everything. It may be called again.
func (p *load) stop() error {
	p.once.Do(func() {
		p.cancel()
		<-p.done
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := p.client.Flush(ctx); err != nil && p.err == nil {
			p.err = fmt.Errorf("wait for the last acknowledgements: %w", err)
		}
		p.client.Close() // what isn't answered is uncertain
	})
	return p.err
}
