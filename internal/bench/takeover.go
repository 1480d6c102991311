package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"golang.org/x/sync/errgroup"

	"auditsink/config"
)

// recoveryPlan is how many workers are killed one after the other, and how large the backlog is that one catches up with.
type recoveryPlan struct {
	lanes, rate int // of both
	kills       int
	backlog     time.Duration // of events at the rate
	before      time.Duration // for how long the usual lag is looked at
}

// recoveryFigures are what both halves of the scenario found.
type recoveryFigures struct {
	Takeovers takeoverFigures  `json:"takeovers"`
	CatchUps  []catchUpFigures `json:"catch_ups"`
}

func (b *bench) measureRecovery(ctx context.Context) (*recoveryFigures, error) {
	f := &recoveryFigures{}
	if err := b.measureTakeovers(ctx, &f.Takeovers); err != nil {
		return nil, fmt.Errorf("kill workers: %w", err)
	}
	for _, variant := range b.ingestVariants {
		c, err := b.measureCatchUp(ctx, variant)
		if err != nil {
			return nil, fmt.Errorf("catch up with a backlog, indexes: %s: %w", variant, err)
		}
		f.CatchUps = append(f.CatchUps, *c)
	}
	return f, nil
}

// takeoverFigures are how soon a worker goes on with the lanes of one that was killed.
type takeoverFigures struct {
	Lanes  int   `json:"lanes"`
	Rate   int   `json:"events_per_second"`
	Events int64 `json:"events"`
	// SessionSeconds is AUDITSINK_KAFKA_SESSION_TIMEOUT, FlushSeconds AUDITSINK_FLUSH_INTERVAL.
	SessionSeconds float64    `json:"session_timeout_seconds"`
	FlushSeconds   float64    `json:"flush_interval_seconds"`
	Kills          []takeover `json:"kills"`
	Median         takeover   `json:"median"`
	Longest        takeover   `json:"longest"`
}

// takeover is what followed one SIGKILL, in seconds from then.
type takeover struct {
	Lanes int `json:"lanes"` // that the killed worker had
	// NoticedSeconds is until the group's coordinator gave the worker up: the session timeout since its last heartbeat.
	NoticedSeconds float64 `json:"noticed_seconds"`
	// ClaimedSeconds is until the other had claimed the first of its lanes: the group has rebalanced.
	ClaimedSeconds float64 `json:"claimed_seconds"`
	// StoredSeconds is until the first row of one of its lanes that the other stored, AllStoredSeconds until each of them has one.
	StoredSeconds    float64 `json:"stored_seconds"`
	AllStoredSeconds float64 `json:"all_stored_seconds"`
}

// measureTakeovers kills one of two workers under load, again and again. It fails when the other ends, or an event isn't exactly one row.
func (b *bench) measureTakeovers(ctx context.Context, f *takeoverFigures) error {
	const topic = "bench-takeover"
	producer, err := b.newTopic(ctx, topic, b.recovery.lanes)
	if err != nil {
		return err
	}
	defer producer.Close()
	admin, err := b.admin()
	if err != nil {
		return err
	}
	defer admin.Close()
	f.Lanes, f.Rate = b.recovery.lanes, b.recovery.rate
	if f.SessionSeconds, err = b.workerSeconds("KAFKA_SESSION_TIMEOUT", config.Default().KafkaSessionTimeout); err != nil {
		return err
	}
	if f.FlushSeconds, err = b.workerSeconds("FLUSH_INTERVAL", config.Default().FlushInterval); err != nil {
		return err
	}
	return b.onDatabase(ctx, allIndexes, func(db *database) error {
		k := &killing{takeoverFigures: f, bench: b, db: db, admin: admin, topic: topic}
		load, stop := errgroup.Group{}, make(chan struct{})
		load.Go(func() (err error) {
			f.Events, err = pace(ctx, producer, topic, f.Rate, stop)
			return err
		})
		err := k.all(ctx)
		close(stop)
		err = errors.Join(err, load.Wait())
		if err == nil {
			_, err = k.workers[0].watch(ctx, db, f.Events)
		}
		for _, w := range k.workers {
			err = w.end(ctx, err)
		}
		if err != nil {
			return err
		}
		f.summarize()
		return db.verify(ctx, int(f.Events))
	})
}

// workerSeconds is a duration among the workers' settings.
func (b *bench) workerSeconds(name string, usual time.Duration) (float64, error) {
	for _, s := range b.settings {
		if value, ok := strings.CutPrefix(s, config.Prefix+name+"="); ok {
			d, err := time.ParseDuration(value)
			if err != nil {
				return 0, fmt.Errorf("read %s: %w", name, err)
			}
			usual = d
		}
	}
	return usual.Seconds(), nil
}

// killing is the first half under way.
type killing struct {
	*takeoverFigures
	bench   *bench
	db      *database
	admin   *kadm.Client
	topic   string
	started int
	workers []*worker // those that live: two, but for a while after a kill
}

// all kills the older worker as often as asked for, and starts another after each kill.
func (k *killing) all(ctx context.Context) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for n := 0; ; n++ {
		for len(k.workers) < 2 {
			k.started++
			w, err := k.bench.startWorker(ctx, k.db, k.topic, k.topic, fmt.Sprintf("%s-%d", k.topic, k.started))
			if err != nil {
				return err
			}
			k.workers = append(k.workers, w)
		}
		if n == k.bench.recovery.kills {
			return nil
		}
		if err := k.awaitBalance(ctx, tick.C); err != nil {
			return err
		}
		// After a rebalance both workers' heartbeats, one a second, come at the same moments. The kills are spread over that second.
		if err := k.workers[0].wait(ctx, time.After(time.Duration(n)*time.Second/time.Duration(k.bench.recovery.kills))); err != nil {
			return err
		}
		t, err := k.kill(ctx, tick.C)
		if err != nil {
			return err
		}
		say("recovery: kill %d: noticed after %.2f s, claimed after %.2f s, stored after %.2f s, all %d lanes after %.2f s",
			n+1, t.NoticedSeconds, t.ClaimedSeconds, t.StoredSeconds, t.Lanes, t.AllStoredSeconds)
		k.Kills = append(k.Kills, t)
	}
}

// laneState is where a lane stands, and whose it is.
type laneState struct {
	epoch, next int64
	owner       string
}

func (s laneState) of(w *worker) bool {
	return strings.HasSuffix(s.owner, fmt.Sprintf("/%d", w.cmd.Process.Pid))
}

// laneStates are all lanes' by ID.
func (db *database) laneStates(ctx context.Context) (map[int32]laneState, error) {
	rows, err := db.conn.Query(ctx, `SELECT lane_id, epoch, next_offset, coalesce(owner, '') FROM audit_lane`)
	if err != nil {
		return nil, fmt.Errorf("read the lanes: %w", err)
	}
	lanes := map[int32]laneState{}
	var id int32
	var s laneState
	if _, err := pgx.ForEachRow(rows, []any{&id, &s.epoch, &s.next, &s.owner}, func() error { lanes[id] = s; return nil }); err != nil {
		return nil, fmt.Errorf("read the lanes: %w", err)
	}
	return lanes, nil
}

// awaitBalance waits until each worker has its part of the lanes and has stored something of each, and the group is stable.
func (k *killing) awaitBalance(ctx context.Context, tick <-chan time.Time) error {
	first := map[int32]laneState{} // as it was claimed
	settled := func() (bool, error) {
		lanes, err := k.db.laneStates(ctx)
		if err != nil {
			return false, err
		}
		moved, owned := 0, map[*worker]int{}
		for id, l := range lanes {
			if first[id].epoch != l.epoch {
				first[id] = l
			}
			if l.next > first[id].next {
				moved++
			}
			for _, w := range k.workers {
				if l.of(w) {
					owned[w]++
				}
			}
		}
		if moved < k.Lanes || min(owned[k.workers[0]], owned[k.workers[1]]) < k.Lanes/2 {
			return false, nil
		}
		changing, err := k.changing(ctx)
		return !changing, err
	}
	deadline := time.Now().Add(stalled)
	for {
		for _, w := range k.workers {
			if err := w.wait(ctx, tick); err != nil {
				return err
			}
		}
		done, err := settled()
		switch {
		case err != nil || done:
			return err
		case time.Now().After(deadline):
			return fmt.Errorf("two workers don't share the lanes after %s", stalled)
		}
	}
}

// kill kills the older worker and watches what becomes of its lanes.
func (k *killing) kill(ctx context.Context, tick <-chan time.Time) (takeover, error) {
	victim, heir := k.workers[0], k.workers[1]
	k.workers = k.workers[1:]
	begun := time.Now()
	if err := victim.kill(); err != nil {
		return takeover{}, err
	}
	was, err := k.db.laneStates(ctx)
	if err != nil {
		return takeover{}, err
	}
	for id, l := range was {
		if !l.of(victim) {
			delete(was, id)
		}
	}
	t := takeover{Lanes: len(was)}
	for taken := map[int32]bool{}; ; {
		if err := heir.wait(ctx, tick); err != nil {
			return t, err
		}
		if t.NoticedSeconds == 0 {
			changing, err := k.changing(ctx)
			if err != nil {
				return t, err
			}
			if changing {
				t.NoticedSeconds = time.Since(begun).Seconds()
			}
		}
		now, err := k.db.laneStates(ctx)
		if err != nil {
			return t, err
		}
		passed := time.Since(begun)
		t.see(passed.Seconds(), was, now, taken)
		if len(taken) == len(was) {
			return t, nil
		}
		if passed.Seconds() > k.SessionSeconds+stalled.Seconds() {
			return t, fmt.Errorf("%d of %d lanes of a killed worker are stored on after %s", len(taken), len(was), passed.Round(time.Second))
		}
	}
}

// see holds the lanes against what they were before they were claimed, and notes in was and taken what has changed.
func (t *takeover) see(seconds float64, was, now map[int32]laneState, taken map[int32]bool) {
	for id, before := range was {
		l := now[id]
		switch {
		case l.epoch == before.epoch:
			was[id] = l // a COMMIT of the killed worker's may have been under way
			continue
		case t.ClaimedSeconds == 0:
			t.ClaimedSeconds = seconds
		}
		if l.next == before.next {
			continue
		}
		if taken[id] = true; t.StoredSeconds == 0 {
			t.StoredSeconds = seconds
		}
		t.AllStoredSeconds = seconds
	}
}

// changing tells whether the group's coordinator knows of fewer than two workers, or is about to give lanes to others.
func (k *killing) changing(ctx context.Context) (bool, error) {
	groups, err := k.admin.DescribeGroups(ctx, k.topic)
	if err != nil {
		return false, fmt.Errorf("describe the group: %w", err)
	}
	group := groups[k.topic]
	if group.Err != nil {
		return false, fmt.Errorf("describe the group: %w", group.Err)
	}
	return group.State != "Stable" || len(group.Members) < 2, nil
}

// summarize fills in what follows from the kills.
func (f *takeoverFigures) summarize() {
	of := func(pick func([]float64) float64) (t takeover) {
		for _, figure := range []func(*takeover) *float64{
			func(t *takeover) *float64 { return &t.NoticedSeconds },
			func(t *takeover) *float64 { return &t.ClaimedSeconds },
			func(t *takeover) *float64 { return &t.StoredSeconds },
			func(t *takeover) *float64 { return &t.AllStoredSeconds },
		} {
			var all []float64
			for i := range f.Kills {
				all = append(all, *figure(&f.Kills[i]))
			}
			*figure(&t) = pick(all)
		}
		return t
	}
	f.Median = of(func(all []float64) float64 { return median(all, func(v float64) float64 { return v }) })
	f.Longest = of(slices.Max[[]float64])
}

func (f *recoveryFigures) print(out *bytes.Buffer) {
	if f == nil {
		return
	}
	t := f.Takeovers
	fmt.Fprintf(out, "\nrecovery: %d lanes, %d events/s, all indexes; one of two workers killed %d times; session timeout %.1f s, flush interval %.1f s; each event one row\n",
		t.Lanes, t.Rate, len(t.Kills), t.SessionSeconds, t.FlushSeconds)
	fmt.Fprintf(out, "%-34s %9s %9s\n", "s from SIGKILL until", "median", "longest")
	for _, line := range []struct {
		name   string
		figure func(takeover) float64
	}{
		{"the group gave the worker up", func(t takeover) float64 { return t.NoticedSeconds }},
		{"the other had claimed a lane", func(t takeover) float64 { return t.ClaimedSeconds }},
		{"it had stored a row of one", func(t takeover) float64 { return t.StoredSeconds }},
		{"it had stored a row of each", func(t takeover) float64 { return t.AllStoredSeconds }},
	} {
		fmt.Fprintf(out, "%-34s %9.2f %9.2f\n", line.name, line.figure(t.Median), line.figure(t.Longest))
	}
	printCatchUps(out, f.CatchUps)
}
