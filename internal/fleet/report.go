package fleet

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"auditsink/metrics"
)

// Life is how long figures live in Redis: what a replica that was killed is still shown for, at most.
const Life = 15 * time.Second

// Reporter writes the figures of one replica and, while it leads, the summary of all.
type Reporter struct {
	Client  *redis.Client
	Group   string
	Life    time.Duration // of what is written, which is written anew after a third of it
	Timeout time.Duration // of a round trip to Redis
	// Identity is asked for until it tells that of the database.
	Identity func(context.Context) (string, error)
	// Figures are those of this replica now. Their Instance is always the same.
	Figures func(now time.Time) (Figures, error)
	// Complete adds to a summary what the database knows. It must return within less than Life.
	Complete func(context.Context, *Summary)
	Metrics  *metrics.Metrics
	Log      *zap.Logger
}

// Run reports until ctx ends, then takes back what it wrote. It waits for nobody: what Redis doesn't take in time is left out.
func (r *Reporter) Run(ctx context.Context) {
	state := &reporting{Reporter: r}
	defer state.leave(ctx)
	tick := time.NewTicker(r.Life / 3)
	defer tick.Stop()
	for {
		err := state.report(ctx)
		if ctx.Err() != nil {
			return
		}
		state.tell(err)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// reporting is how far a reporter has come.
type reporting struct {
	*Reporter
	fleet    *Fleet // nil before the identity of the database is known
	instance string
	led      bool // a summary may be ours
	failing  bool
}

func (r *reporting) report(ctx context.Context) error {
	err := r.open(ctx)
	if err != nil {
		return err
	}
	figures, err := r.Figures(time.Now())
	if err != nil {
		return err
	}
	r.instance = figures.Instance
	if !figures.Leader {
		r.Metrics.FleetReplicas.Set(0)
	}
	if err := r.fleet.Publish(ctx, figures); err != nil {
		r.Metrics.FleetReplicas.Set(0)
		return err
	}
	if !figures.Leader {
		return r.standDown(ctx)
	}
	if err := r.summarize(ctx, figures); err != nil {
		r.Metrics.FleetReplicas.Set(0)
		return err
	}
	return nil
}

func (r *reporting) open(ctx context.Context) error {
	if r.fleet != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.Life/3)
	defer cancel()
	identity, err := r.Identity(ctx)
	if err == nil {
		r.fleet = Open(r.Client, identity, r.Group, r.Life, r.Timeout)
	}
	return err
}

// summarize tells what all figures come to together.
func (r *reporting) summarize(ctx context.Context, own Figures) error {
	all, err := r.fleet.Read(ctx)
	if err != nil {
		return err
	}
	if err := r.fleet.bury(ctx, all.dead); err != nil {
		return err
	}
	s := Summary{At: own.At, Leader: own.Instance, LeaderSince: own.LeaderSince, Totals: Total(all.Replicas), Notes: all.Notes}
	r.Complete(ctx, &s)
	r.led = true
	if err := r.fleet.Summarize(ctx, s); err != nil {
		return err
	}
	r.Metrics.FleetReplicas.Set(float64(len(all.Replicas)))
	return nil
}

// standDown takes the summary back when this replica leads no more.
func (r *reporting) standDown(ctx context.Context) error {
	if !r.led {
		return nil
	}
	err := r.fleet.Withdraw(ctx, r.instance)
	r.led = err != nil
	return err
}

// leave takes back what was written; what can't be in time ends by itself.
func (r *reporting) leave(ctx context.Context) {
	r.Metrics.FleetReplicas.Set(0)
	if r.fleet == nil || r.instance == "" || r.failing {
		return
	}
	ctx = context.WithoutCancel(ctx)
	err := r.standDown(ctx)
	if err == nil {
		err = r.fleet.Remove(ctx, r.instance)
	}
	if err != nil {
		r.Log.Info("this replica is shown for some seconds more than it lives", zap.Duration("most", r.Life), zap.Error(err))
	}
}

// tell logs a change for the worse or the better.
func (r *reporting) tell(err error) {
	if failing := err != nil; failing != r.failing {
		r.failing = failing
		if failing {
			r.Log.Warn("the figures of this replica don't reach Redis, and auditsink status misses them; ingest goes on, and so do the attempts", zap.Error(err))
			return
		}
		r.Log.Info("the figures of this replica reach Redis again")
	}
}
