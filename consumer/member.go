package consumer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"

	"auditsink/internal/failpoint"
	"auditsink/internal/kafka"
	"auditsink/metrics"
	"auditsink/sink"
)

const (
	// rebalanceTimeout is how long the group waits for a member that has to give lanes up; draining must be well under it.
	rebalanceTimeout = 60 * time.Second
	// commitInterval is how far Kafka's offsets may trail behind the positions.
	commitInterval = time.Second
	// fetchMaxBytes bounds one fetch from one broker, before it is unpacked, which is held in memory on top of the buffers. fetchMaxLaneBytes bounds
	// one lane's part of it, by which a lane may exceed its share; a record batch that is larger comes whole, and alone.
	fetchMaxBytes     = 2 << 20
	fetchMaxLaneBytes = 256 << 10
	// fetchMaxWait bounds how long a broker keeps a fetch that finds nothing. The client has one fetch under way with a broker, and a lane
	// that was resumed meanwhile waits for it.
	fetchMaxWait = 100 * time.Millisecond
	// stalledAfter is for how long a lane may wait before the worker stops calling itself ready.
	stalledAfter = 10 * time.Second
)

// laneKey is a lane as the group protocol names it.
type laneKey struct {
	topic     string
	partition int32
}

// member is one membership of the group. Its state belongs to whoever holds mu: the client's callbacks, the poll loop and the lanes.
type member struct {
	opts    Options
	client  *kgo.Client
	admin   *kadm.Client
	sink    *sink.Sink
	metrics *metrics.Metrics
	log     *zap.Logger

	// made is closed once client and admin are set. The client's callbacks wait for that, since they may come before it has been returned.
	made chan struct{}
	// noted are the IDs of lanes of which an earlier member of this worker has put on record that they were set back.
	noted *sync.Map

	mu    sync.Mutex
	lanes map[laneKey]*lane
	// expected are the lanes that the group assigned and that have not come with their committed offsets yet.
	expected map[laneKey]bool
	// joined says that the group has given an assignment, if only an empty one.
	joined bool
	// stopping says that no lane is taken over any more.
	stopping bool
	// stopBy is when a worker that was told to stop gives up what it still has buffered.
	stopBy time.Time
	// brokersSeen is when a broker answered last.
	brokersSeen time.Time

	// committing is held while offsets are being committed, so that none is for a lane after it was given up.
	committing sync.Mutex
	// beats counts answered heartbeats.
	beats atomic.Int64
	// moves are lanes to be fetched from another offset; the poll loop does that while it holds no records.
	moves    chan *lane
	wakePoll atomic.Pointer[context.CancelFunc]
	// freed holds at most one signal for the poll loop: a lane holds less.
	freed chan struct{}
	// failed receives the error that ends the worker.
	failed chan error
	// running is the context of all lanes, and stop ends it; the client's callbacks bring contexts that end too early for a lane.
	running context.Context
	stop    context.CancelFunc
	stores  sync.WaitGroup
}

// newMember makes a group member, which joins at once. client are the options of brokers, security and topics. run must follow.
func newMember(opts Options, client []kgo.Opt, s *sink.Sink, m *metrics.Metrics, log *zap.Logger, noted *sync.Map) (*member, error) {
	c := &member{
		opts: opts, sink: s, metrics: m, log: log, noted: noted, made: make(chan struct{}),
		lanes: map[laneKey]*lane{}, expected: map[laneKey]bool{}, moves: make(chan *lane, 1024), failed: make(chan error, 1), freed: make(chan struct{}, 1),
	}
	c.running, c.stop = context.WithCancel(context.Background())
	kafkaClient, err := kgo.NewClient(append([]kgo.Opt{
		kgo.ConsumerGroup(opts.Group),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.DisableAutoCommit(),
		kgo.RebalanceTimeout(rebalanceTimeout),
		kgo.SessionTimeout(opts.SessionTimeout),
		kgo.HeartbeatInterval(min(time.Second, opts.SessionTimeout/3)),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Control records move the position, or the lag behind a transactional producer would never be 0.
		kgo.KeepControlRecords(),
		kgo.FetchMaxBytes(fetchMaxBytes),
		kgo.FetchMaxPartitionBytes(fetchMaxLaneBytes),
		kgo.FetchMaxWait(fetchMaxWait),
		// How soon partitions that were added are noticed, and topics that a pattern matches.
		kgo.MetadataMaxAge(30 * time.Second),
		// A poll only hands records over, so it holds up a rebalance for a moment; in return no record of a lane that was given up
		// can arrive in a later life of the same lane.
		kgo.BlockRebalanceOnPoll(),
		kgo.OnPartitionsAssigned(c.assigned),
		kgo.AdjustFetchOffsetsFn(c.claim),
		kgo.OnPartitionsRevoked(c.revoked),
		kgo.OnPartitionsLost(c.lost),
		kgo.WithHooks(beatHook{&c.beats}),
	}, client...)...)
	if err != nil {
		return nil, fmt.Errorf("make the Kafka client: %w", err)
	}
	c.client, c.admin = kafkaClient, kadm.NewClient(kafkaClient)
	close(c.made)
	return c, nil
}

// errRejoin ends a membership whose lanes can't go on in it: only a new client takes a new topic ID, or fetches a lane from an earlier offset
// for sure.
var errRejoin = errors.New("the group has to be joined anew")

// run consumes until ctx ends, then stores what is buffered, commits, and leaves the group. It returns nil after that, or the error that
// no lane can live with, or errRejoin.
func (c *member) run(ctx context.Context) error {
	defer c.client.CloseAllowingRebalance()
	var background sync.WaitGroup
	background.Go(func() { c.every(commitInterval, c.commit) })
	background.Go(func() { c.every(lagInterval, c.measureLag) })
	background.Go(func() { c.every(lookInterval, c.look) })

	defer context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.stopBy = time.Now().Add(c.opts.DrainTimeout)
	})()

	err := c.poll(ctx)
	c.mu.Lock()
	c.stopping = true
	c.mu.Unlock()
	failpoint.Hit("consumer.stopping")
	c.drain(c.ownLanes())
	leaving, cancel := context.WithTimeout(c.running, 5*time.Second)
	defer cancel()
	if left := c.client.LeaveGroupContext(leaving); left != nil {
		c.log.Warn("the group could not be left: its other members take over after the session timeout", zap.Error(left))
	}
	c.stop()
	c.stores.Wait()
	background.Wait()
	return err
}

// every calls what each interval until the consumer stops.
func (c *member) every(interval time.Duration, what func(context.Context)) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-c.running.Done():
			return
		case <-tick.C:
			what(c.running)
		}
	}
}

// poll hands records to their lanes until ctx ends or something fatal happens.
func (c *member) poll(ctx context.Context) error {
	for {
		polling, wake := context.WithCancel(ctx)
		c.wakePoll.Store(&wake)
		if len(c.moves) > 0 || len(c.failed) > 0 {
			wake() // the poll returns at once
		}
		c.awaitRoom(polling)
		fetches := c.client.PollFetches(polling)
		// Faults first: where the client has read on behind a log that was cut, none of that may get in.
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			if p.Err != nil {
				c.fetchFailed(c.lane(p.Topic, p.Partition), p)
			}
		})
		fetches.EachPartition(c.deliver)
		failpoint.Hit("consumer.polled")
		wake()
		// Between a poll and AllowRebalance no records are under way, and no lane is taken away.
		c.move()
		c.client.AllowRebalance()
		select {
		case err := <-c.failed:
			return err
		default:
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // told to stop, which is no failure
		}
		if fetches.IsClientClosed() {
			return errors.New("the Kafka client was closed")
		}
	}
}

// deliver gives what was fetched of one partition to its lane.
func (c *member) deliver(p kgo.FetchTopicPartition) {
	l := c.lane(p.Topic, p.Partition)
	if l == nil || len(p.Records) == 0 {
		return
	}
	rows, bytes := l.put(p.Records, time.Now())
	c.metrics.RecordsConsumed.Add(float64(rows))
	c.metrics.BufferedBytes.Add(float64(bytes))
}

// fetchFailed deals with an error that the client reports instead of records. What a broker says and passes by itself the client keeps to itself,
// so what is left of those has to be looked into.
func (c *member) fetchFailed(l *lane, p kgo.FetchTopicPartition) {
	var cut *kgo.ErrDataLoss
	switch {
	case errors.Is(p.Err, context.Canceled), errors.Is(p.Err, context.DeadlineExceeded), errors.Is(p.Err, kgo.ErrClientClosed):
	case l == nil && p.Topic == "" && kafka.Fatal(p.Err): // the group may not be joined, or the credentials are no longer taken
		c.fail(fmt.Errorf("consume as group %q: %w", c.opts.Group, p.Err))
	case l == nil || kgo.IsRetryableBrokerErr(p.Err):
		c.log.Warn("Kafka reported an error", zap.String("topic", p.Topic), zap.Int32("partition", p.Partition), zap.Error(p.Err))
	case errors.As(p.Err, &cut):
		c.halt(l, logCut(cut.ConsumedTo, cut.ResetTo))
	default: // repeated thousands of times a second, were the lane not paused
		l.stray(p.Err, time.Now())
	}
}

// logCut says that a log ends, or was continued otherwise, before what had been read of it.
func logCut(read, end int64) error {
	return fmt.Errorf("the brokers lost records: the log was read up to offset %d, and of that only what is below %d is still there; "+
		"what was stored stays; see whether a leader was elected uncleanly, or the topic restored", read, end)
}

// halt stops one lane until an operator has acted, loudly; the others go on.
func (c *member) halt(l *lane, why error) {
	if !l.suspend(halted, why.Error()) {
		return // it has halted already
	}
	c.metrics.BufferedBytes.Sub(float64(l.discard()))
	c.log.Error("lane halted: nothing of it is stored until its cause is mended and it is accepted again (auditsink lanes accept)",
		zap.Stringer("lane", l.id), zap.Int64("position", l.position()), zap.Error(why))
	c.count()
}

// fail ends the worker with the first error that no lane can live with.
func (c *member) fail(err error) {
	select {
	case c.failed <- err:
	default:
	}
	c.interrupt()
}

// interrupt makes the poll loop look round now.
func (c *member) interrupt() {
	if wake := c.wakePoll.Load(); wake != nil {
		(*wake)()
	}
}

// move has lanes fetched from their positions anew.
func (c *member) move() {
	for {
		select {
		case l := <-c.moves:
			if c.lane(l.id.Topic, l.id.Partition) != l {
				continue // given up meanwhile
			}
			claim := l.claimed()
			c.client.SetOffsets(map[string]map[int32]kgo.EpochOffset{
				l.id.Topic: {l.id.Partition: {Epoch: claim.LeaderEpoch, Offset: claim.Next}},
			})
			l.resume()
		default:
			return
		}
	}
}

func (c *member) lane(topic string, partition int32) *lane {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lanes[laneKey{topic, partition}]
}

func (c *member) ownLanes() []*lane {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*lane, 0, len(c.lanes))
	for _, l := range c.lanes {
		all = append(all, l)
	}
	return all
}

// count publishes how many lanes there are, and shares the budget of bytes out among them.
func (c *member) count() {
	c.mu.Lock()
	defer c.mu.Unlock()
	stopped := 0
	for _, l := range c.lanes {
		l.mu.Lock()
		l.share = c.opts.BufferBytes / int64(len(c.lanes))
		if l.phase == halted {
			stopped++
		}
		l.mu.Unlock()
	}
	c.metrics.LanesOwned.Set(float64(len(c.lanes)))
	c.metrics.LanesHalted.Set(float64(stopped))
}

// tap is what lets the client fetch a lane, or not.
func (c *member) tap(topic string, partition int32) func(open bool) {
	lane := map[string][]int32{topic: {partition}}
	return func(open bool) {
		if open {
			c.client.ResumeFetchPartitions(lane)
		} else {
			c.client.PauseFetchPartitions(lane)
		}
	}
}

// ready is nil while the worker takes in events, else it says why it doesn't.
func (c *member) ready() error {
	c.mu.Lock()
	joined, seen, stopping := c.joined, c.brokersSeen, c.stopping
	c.mu.Unlock()
	if stopping {
		return errors.New("the worker is leaving the group")
	}
	if !joined {
		return fmt.Errorf("consumer group %q is not joined yet", c.opts.Group)
	}
	if time.Since(seen) > 3*lagInterval+stalledAfter {
		return fmt.Errorf("no broker has answered since %s", seen.UTC().Format(time.RFC3339))
	}
	var problems []error
	for _, l := range c.ownLanes() {
		l.mu.Lock()
		switch {
		case l.phase == waiting, l.phase == halted:
			problems = append(problems, fmt.Errorf("lane %s: %s", l.id, l.why))
		case !l.flushing.IsZero() && time.Since(l.flushing) > stalledAfter:
			problems = append(problems, fmt.Errorf("lane %s: its batch has not been stored since %s", l.id, l.flushing.UTC().Format(time.RFC3339)))
		}
		l.mu.Unlock()
	}
	return errors.Join(problems...)
}

// beatHook counts the heartbeats that a broker answered, with whatever answer: a refusal makes the client give the lanes up at once.
type beatHook struct{ beats *atomic.Int64 }

// OnBrokerE2E implements kgo.HookBrokerE2E.
func (h beatHook) OnBrokerE2E(_ kgo.BrokerMetadata, key int16, e2e kgo.BrokerE2E) {
	if key == int16(kmsg.Heartbeat) && e2e.Err() == nil {
		h.beats.Add(1)
	}
}
