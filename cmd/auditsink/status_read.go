package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"auditsink/config"
	"auditsink/internal/fleet"
	"auditsink/internal/postgres"
	"auditsink/migrations"
	"auditsink/partitions"
	"auditsink/sink"
)

const (
	// databaseWithin and workerWithin bound how long status waits for either.
	databaseWithin = 5 * time.Second
	workerWithin   = 3 * time.Second
	// countEvery is how often --watch counts what takes a whole table to count.
	countEvery = 15 * time.Second
)

// statusReader looks at how everything is, again and again.
type statusReader struct {
	cfg      config.Config
	redis    *redis.Client  // nil: none is configured
	pool     *postgres.Pool // nil: none is configured
	watching bool
	checked  bool   // the database answered, and its schema is ours
	identity string // of the database; empty: not known yet
	worker   workerLook
	counted  time.Time // when what follows was read
	counts   status    // its parts that take long
}

func newStatusReader(ctx context.Context, cfg config.Config, watching bool) (*statusReader, error) {
	client, err := openRedis(cfg)
	if err != nil {
		return nil, err
	}
	r := &statusReader{cfg: cfg, redis: client, watching: watching}
	if cfg.PostgresURL == "" {
		return r, nil
	}
	o := poolOptions(cfg, cfg.PostgresURL)
	o.MinConns, o.MaxConns = 0, 4
	if r.pool, err = postgres.Open(ctx, o); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *statusReader) close() {
	if r.pool != nil {
		r.pool.Close()
	}
	if r.redis != nil {
		_ = r.redis.Close() // nothing was written
	}
}

// read looks once.
func (r *statusReader) read(ctx context.Context) *status {
	s := &status{At: time.Now().UTC(), Group: r.cfg.KafkaGroup, Problems: []problem{}, Notes: []string{}}
	s.Replicas.Items, s.Lanes.Items, s.Gaps.Items = []fleet.Figures{}, []statusLane{}, []sink.GapTally{}
	r.readDatabase(ctx, s)
	r.readReplicas(ctx, s)
	s.fill()
	s.own()
	s.judge(partitions.Interval(r.cfg.PartitionInterval))
	return s
}

// readDatabase reads what is in Postgres, each part by itself.
func (r *statusReader) readDatabase(ctx context.Context, s *status) {
	ctx, cancel := context.WithTimeout(ctx, databaseWithin)
	defer cancel()
	if err := r.reach(ctx); err != nil {
		why := postgres.Explain(err).Error()
		s.Leader.Error, s.Lanes.Error, s.Partitions.Error, s.Quarantine.Error, s.Gaps.Error = why, why, why, why, why
		return
	}
	var parts sync.WaitGroup
	parts.Go(func() { s.Lanes.Error = told(r.readLanes(ctx, s), &s.Lanes.Source) })
	parts.Go(func() {
		err := r.readPartitions(ctx, s)
		s.Partitions.Error, s.Leader.Error = told(err, &s.Partitions.Source), told(err, &s.Leader.Source)
	})
	fresh := s.At.Sub(r.counted) >= countEvery
	if fresh {
		r.counts, r.counted = status{}, s.At
		r.counts.Gaps.Items = []sink.GapTally{}
		parts.Go(func() { r.counts.Quarantine.Error = told(r.countQuarantine(ctx), &r.counts.Quarantine.Source) })
		parts.Go(func() { r.counts.Gaps.Error = told(r.countGaps(ctx), &r.counts.Gaps.Source) })
		parts.Go(func() { r.counts.Partitions.Error = told(r.findNextDrop(ctx), &r.counts.Partitions.Source) })
	}
	parts.Wait()
	s.Quarantine, s.Gaps, s.Partitions.NextDrop = r.counts.Quarantine, r.counts.Gaps, r.counts.Partitions.NextDrop
	if s.Partitions.Error == "" {
		s.Partitions.Error = r.counts.Partitions.Error
	}
}

// told is why a part couldn't be read; where it could, the source is set.
func told(err error, source *string) string {
	if err != nil {
		return postgres.Explain(err).Error()
	}
	*source = fromPostgres
	return ""
}

// reach makes sure that the database is there and ours. --watch tries again by itself.
func (r *statusReader) reach(ctx context.Context) error {
	if r.pool == nil {
		return errors.New("AUDITSINK_POSTGRES_URL is not set")
	}
	if r.checked {
		return nil
	}
	attempts := r.cfg.PoolRetryAttempts
	if r.watching {
		attempts = 1
	}
	if err := r.pool.Wait(ctx, attempts, r.cfg.PoolRetryDelay, func(error) {}); err != nil {
		return err
	}
	if err := migrations.Check(ctx, r.pool.Pool); err != nil {
		return err
	}
	var err error
	if r.identity, err = r.pool.Identity(ctx); err != nil {
		return err
	}
	r.checked = true
	return nil
}

func (r *statusReader) readLanes(ctx context.Context, s *status) error {
	lanes, err := sink.Lanes(ctx, r.pool)
	if err != nil {
		return err
	}
	for _, l := range lanes {
		if l.State == laneRetired {
			continue
		}
		lane := statusLane{Lane: fleet.Lane{Topic: l.Topic, Partition: l.Partition, Position: &l.NextOffset}, Group: l.Group, State: l.State, Owner: l.Owner}
		if l.State == laneHalted {
			lane.Halted = l.Reason
		}
		s.Lanes.Items = append(s.Lanes.Items, lane)
	}
	return nil
}

func (r *statusReader) readPartitions(ctx context.Context, s *status) error {
	view, err := partitions.Glance(ctx, r.pool.Pool, s.At)
	if err != nil {
		return err
	}
	s.view = view
	s.Leader = statusLeader{Holder: view.Leader.Holder, Since: view.Leader.Since, Expired: view.Leader.Expired}
	s.Partitions.Count, s.Partitions.WaysOut = len(view.Catalog.Partitions), len(view.WaysOut)
	s.Partitions.ReadyUntil, s.Partitions.Enforced = partitions.ReadyUntil(s.At, view.Catalog.Partitions), r.cfg.RetentionEnforce
	return nil
}

func (r *statusReader) findNextDrop(ctx context.Context) error {
	fates, err := partitions.Outlook(ctx, r.pool.Pool, time.Now(), retention(r.cfg))
	var survey partitions.Survey
	for i := range fates {
		survey.Stats = append(survey.Stats, partitions.Stat{Fate: &fates[i]})
	}
	r.counts.Partitions.NextDrop = survey.NextDrop() // good also where a part of them couldn't be told
	if err != nil {
		return fmt.Errorf("find what is dropped next: %w", err)
	}
	return nil
}

func (r *statusReader) countQuarantine(ctx context.Context) (err error) {
	r.counts.Quarantine.At = r.counted
	r.counts.Quarantine.QuarantineTally, err = sink.TallyQuarantine(ctx, r.pool)
	return err
}

func (r *statusReader) countGaps(ctx context.Context) error {
	gaps, err := sink.TallyGaps(ctx, r.pool)
	r.counts.Gaps.Items = append(r.counts.Gaps.Items, gaps...)
	return err
}

// readReplicas reads the figures of all replicas, or else asks the worker that is near.
func (r *statusReader) readReplicas(ctx context.Context, s *status) {
	err := r.readFleet(ctx, s)
	if err == nil && len(s.Replicas.Items) > 0 {
		return
	}
	r.readWorker(ctx, s)
	switch {
	case err == nil && s.Replicas.Source == fromRedis:
		s.Replicas.Error = "" // nobody is there, and that is known
	case err == nil:
		s.Notes = append(s.Notes, "the figures are those of one worker: there are none in Redis (do the workers have AUDITSINK_REDIS_URL?)")
	case s.Replicas.Source == "":
		s.Replicas.Error = fmt.Sprintf("%v; %s", err, s.Replicas.Error)
	default:
		s.Notes = append(s.Notes, fmt.Sprintf("the figures are those of one worker, since those of all replicas can't be read: %v", err))
	}
}

// readFleet reads the figures of all replicas.
func (r *statusReader) readFleet(ctx context.Context, s *status) error {
	if r.redis == nil {
		return errors.New("AUDITSINK_REDIS_URL is not set")
	}
	view, err := r.viewFleet(ctx, s)
	if err != nil {
		return err
	}
	s.Replicas.Source, s.Replicas.Items, s.summary = fromRedis, append(s.Replicas.Items, view.Replicas...), view.Summary
	s.Notes = append(s.Notes, view.Notes...)
	return nil
}

func (r *statusReader) viewFleet(ctx context.Context, s *status) (fleet.View, error) {
	if r.identity != "" {
		return r.fleet(r.identity).Read(ctx)
	}
	return r.guessFleet(ctx, s)
}

func (r *statusReader) fleet(identity string) *fleet.Fleet {
	return fleet.Open(r.redis, identity, r.cfg.KafkaGroup, fleet.Life, r.cfg.RedisTimeout)
}

// guessFleet finds the fleet of a database that doesn't answer: the one whose replicas reach it by the same name, or the only one there is.
func (r *statusReader) guessFleet(ctx context.Context, s *status) (fleet.View, error) {
	known, err := fleet.Databases(ctx, r.redis, r.cfg.KafkaGroup, r.cfg.RedisTimeout)
	if err != nil {
		return fleet.View{}, err
	}
	var all, same []fleet.View
	for _, identity := range known {
		view, err := r.fleet(identity).Read(ctx)
		switch {
		case err != nil:
			return fleet.View{}, err
		case len(view.Replicas) == 0:
			continue
		case r.pool != nil && slices.ContainsFunc(view.Replicas, func(f fleet.Figures) bool { return f.Database == databaseName(r.pool) }):
			same = append(same, view)
		}
		all = append(all, view)
	}
	switch {
	case len(same) == 1:
		return same[0], nil
	case len(all) == 1:
		s.Notes = append(s.Notes, fmt.Sprintf("the replicas are those of %s, the only ones of consumer group %q in Redis: the database can't be asked which are its own", all[0].Replicas[0].Database, r.cfg.KafkaGroup))
		return all[0], nil
	case len(all) == 0:
		return fleet.View{}, nil
	default:
		return fleet.View{}, fmt.Errorf("Redis has replicas of %d databases, and the database can't be asked which are its own", len(all)) //nolint:staticcheck // a name
	}
}
