package partitions

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"

	"auditsink/internal/failpoint"
	"auditsink/internal/indexes"
)

const (
	// buildAge is how long a transaction may have lasted for a build to begin: CREATE INDEX CONCURRENTLY waits at its end for all that began before that (PostgreSQL, CREATE INDEX,
	// Building Indexes Concurrently), and one that is older probably goes on for longer.
	buildAge = time.Minute
	// buildWait bounds each of its waits. What it waits for is behind it by then: giving up costs the whole build, and waiting nobody anything.
	buildWait = "10min"
	// buildEnds is how long the server has to end a build when the term is over, before the connection is closed over it.
	buildEnds = 5 * time.Second
)

// Builder builds what partitions lack of the indexes that come after their interval. It works beside the rounds: a build of tens of millions of rows takes minutes, and creation and
// retention must not wait for so many of them.
type Builder struct {
	DB    *pgxpool.Pool    // its connections are not used but for the looks
	Grace time.Duration    // after the end of a partition's interval, or its creation where that was later, for late events
	Now   func() time.Time // this process's clock
	Every time.Duration    // between two looks for what is due
	// Told is told of each index that was built, and of what is left for later; and of an error, the first of those that say the same.
	Told func(Care, error)
}

// Run builds until ctx ends, which it returns the cause of, or [ErrDeposed] where the term is over. A build that is under way then is canceled, and leaves an invalid index, which the next leader's drops.
func (b Builder) Run(ctx context.Context, term Term) error {
	var last string
	for {
		err := b.Build(ctx, term)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, ErrDeposed):
			return err
		case err == nil:
			last = ""
		case err.Error() != last:
			b.Told(Care{}, err)
			last = err.Error()
		}
		if !sleep(ctx, b.Every) {
			return context.Cause(ctx)
		}
	}
}

// Build builds all that is due once: of the partition that has waited longest first, so that none waits for ever, and its indexes in the order of the profile. One at a time, by
// one process of the server, and with a pause as long as the build after each, so that at most half of the time goes into building: CREATE INDEX knows no cost delay. Late events come in
// meanwhile, and are in the index.
//
// It begins nothing beside a transaction that it would have to wait for for long, nor where somebody else has the partition locked; that is left for the next call. It ends with [ErrDeposed]
// where the term is over.
func (b Builder) Build(ctx context.Context, term Term) error {
	if err := b.settle(ctx, term); err != nil {
		return fmt.Errorf("settle records of builds: %w", err)
	}
	var s *building
	var failed []error
	tried := map[string]bool{}
	for {
		d, err := b.next(ctx, tried)
		if err != nil || d == nil {
			return errors.Join(append(failed, err)...)
		}
		if s == nil {
			if s, err = b.begin(ctx, term); err != nil {
				return fmt.Errorf("build indexes: %w", err)
			}
			defer s.end(ctx)
		}
		tried[d.Index] = true
		begun := time.Now()
		err = s.build(ctx, d)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, ErrDeposed):
			return err
		case err != nil:
			failed = append(failed, fmt.Errorf("build index %s: %w", d.Index, err))
		default:
			b.Told(d.Care, nil)
		}
		if s.session.IsClosed() || d.Left == besideOld {
			return errors.Join(failed...) // it is the same for all others
		}
		if !sleep(ctx, time.Since(begun)) { // also where it failed: it has cost as much
			return context.Cause(ctx)
		}
	}
}

// settle says of builds that they are done where the index is there and valid: whoever began them may have been killed, or deposed, before the record. The server had gone on.
func (b Builder) settle(ctx context.Context, term Term) error {
	return transact(ctx, b.DB, func(tx pgx.Tx) error {
		found, err := tx.Exec(ctx, `
			UPDATE audit_partition_event e SET state = 'done', updated_at = clock_timestamp(), term = $1
			WHERE kind = 'index' AND state = 'verified' AND EXISTS (
				SELECT FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
				WHERE x.indrelid = to_regclass(quote_ident(e.partition_name)) AND i.relname = e.detail->>'index' AND x.indisvalid)`, term.Number)
		if err != nil || found.RowsAffected() == 0 {
			return err
		}
		return term.confirm(ctx, tx)
	})
}

// besideOld is why nothing is begun.
const besideOld = "a transaction of this database has lasted for over a minute, and the build would wait for it (pg_stat_activity, xact_start)"

// lockedByOther is why nothing is begun on one partition.
const lockedByOther = "somebody else has it locked"

// dueIndex is an index to build.
type dueIndex struct {
	due
	index indexes.Index
}

// next finds the first index that is due and wasn't tried; nil where there is none. It looks anew each time: the profile, or the partitions, may have changed during the build before.
func (b Builder) next(ctx context.Context, tried map[string]bool) (*dueIndex, error) {
	now, err := earlier(ctx, b.DB, b.Now())
	if err != nil {
		return nil, err
	}
	all, err := readUnbuilt(ctx, b.DB)
	if err != nil {
		return nil, err
	}
	for _, u := range all {
		if !u.due(now, b.Grace) {
			continue
		}
		for n, name := range u.names() {
			if !tried[name] {
				return &dueIndex{due{Care: Care{Partition: u.Name, Kind: "index", Index: name}, bounds: []*time.Time{orNull(u.From), orNull(u.To)}}, u.lacks[n]}, nil
			}
		}
	}
	return nil, nil //nolint:nilnil // nothing is due
}

// building is a session of its own that builds.
type building struct {
	upkeep
	old time.Duration // from which age on a transaction is
}

// begin opens it. When ctx ends, the server is asked to end what it is at, which it otherwise would carry on with.
func (b Builder) begin(ctx context.Context, term Term) (*building, error) {
	config := b.DB.Config().ConnConfig.Copy()
	config.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: conn, DeadlineDelay: buildEnds}
	}
	session, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	s := &building{upkeep{session: session, term: term}, buildAge}
	if err = s.prepare(ctx); err == nil && !s.pooled { // through a pooler it builds all the same: a partition that never gets its indexes is worse than a build with the server's settings
		_, err = session.Exec(ctx, indexes.SessionSettings+`; SET lock_timeout = '`+buildWait+`'`)
	}
	if err != nil {
		s.end(ctx)
		return nil, fmt.Errorf("prepare the session: %w", err)
	}
	return s, nil
}

// build builds one index, with its begin and its end on record. The term is confirmed by both records: a leader that was deposed begins nothing, and what it had begun by then its
// successor settles, or does again.
func (s *building) build(ctx context.Context, d *dueIndex) error {
	old, err := s.besideOld(ctx, d)
	if err != nil || old {
		return err
	}
	err = s.transaction(ctx, func(tx pgx.Tx) error {
		// Waiting for this lock in the build itself would end an autovacuum.
		if _, err := tx.Exec(ctx, `LOCK TABLE ONLY `+pgx.Identifier{d.Partition}.Sanitize()+` IN SHARE UPDATE EXCLUSIVE MODE`); err != nil {
			return err
		}
		return s.record(ctx, tx, &d.due, `
			WITH again AS (
				UPDATE audit_partition_event SET updated_at = clock_timestamp(), term = $5
				WHERE partition_name = $1 AND kind = $2 AND state = 'verified' AND detail->>'index' = $6::text AND `+sinceCreated+` RETURNING id)
			INSERT INTO audit_partition_event (partition_name, kind, lower_bound, upper_bound, term, state, detail)
			SELECT $1, $2, $3, $4, $5, 'verified', jsonb_build_object('index', $6::text) WHERE NOT EXISTS (SELECT FROM again)`, d.Index)
	})
	if err != nil {
		return s.left(&d.due, err)
	}
	failpoint.Hit("partitions.build.begun")
	begun := time.Now()
	if _, err := indexes.Create(ctx, s.session, d.Partition, d.index); err != nil {
		if errors.Is(err, indexes.ErrNoTable) {
			d.Left = "it is gone"
			return nil
		}
		return err // also of a bound on it: what it has cost is lost, and somebody should know
	}
	failpoint.Hit("partitions.build.built")
	return s.transaction(ctx, func(tx pgx.Tx) error {
		return s.record(ctx, tx, &d.due, `
			UPDATE audit_partition_event SET state = 'done', updated_at = clock_timestamp(), term = $5, lower_bound = $3, upper_bound = $4,
				row_count = (SELECT nullif(reltuples, -1) FROM pg_class WHERE oid = to_regclass(quote_ident($1))),
				detail = detail || jsonb_build_object('seconds', $7::float8, 'bytes', pg_relation_size(to_regclass(quote_ident($6))))
			WHERE partition_name = $1 AND kind = $2 AND state = 'verified' AND detail->>'index' = $6::text AND `+sinceCreated, d.Index, time.Since(begun).Seconds())
	})
}

// besideOld tells whether the build would wait for long: for a transaction whose snapshot is old, which all builds would, or for one that has this partition locked, prepared ones among them.
// It doesn't wait for VACUUM elsewhere, nor for who reads without a snapshot (WaitForOlderSnapshots in PostgreSQL's src/backend/commands/indexcmds.c). Those of other roles are seen by who may read
// all statistics only.
func (s *building) besideOld(ctx context.Context, d *dueIndex) (bool, error) {
	var snapshot, lock float64
	err := s.session.QueryRow(ctx, `
		SELECT coalesce((
			SELECT max(extract(epoch FROM clock_timestamp() - xact_start)) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
			  AND pid NOT IN (SELECT pid FROM pg_stat_progress_vacuum)), 0)::float8, coalesce((
			SELECT max(CASE WHEN l.pid IS NULL THEN 1e6 ELSE extract(epoch FROM clock_timestamp() - a.xact_start) END) FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
			WHERE l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND l.relation = to_regclass(quote_ident($1))
			  AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid() AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')), 0)::float8`,
		d.Partition).Scan(&snapshot, &lock)
	switch {
	case err != nil:
		return false, fmt.Errorf("look for old transactions: %w", err)
	case snapshot >= s.old.Seconds():
		d.Left = besideOld
	case lock >= s.old.Seconds():
		d.Left = lockedByOther
	}
	return d.Left != "", nil
}
