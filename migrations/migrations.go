// Package migrations holds the database schema as embedded SQL, and applies it. What it creates is described in the SQL
// files; monthly partitions are created by package partitions, afterwards.
package migrations

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

//go:embed *.sql
var files embed.FS

// versionTable is not goose's default: another program that shares the database may use that one.
const versionTable = "audit_schema_version"

// lockID is "auditsql" as a number, the session advisory lock of whoever applies migrations.
const lockID = 0x617564697473716c

// patience is how long Apply waits for another process that applies migrations; an index build can take that long.
const patience = time.Hour

// Migration is one numbered step of the schema.
type Migration struct {
	Version   int64     `json:"version"`
	Name      string    `json:"name"`                // the SQL file's name; empty if this binary doesn't know the version
	AppliedAt time.Time `json:"applied_at,omitzero"` // by the database's clock; zero if pending
}

// Apply brings the schema of the database at url up to this binary's version and returns the migrations it applied, none
// if there was nothing to do. Any number of processes may call it at once: one works, the others wait.
//
// It refuses, before it changes anything, a database whose audit_log isn't ours ([*TableError]) and one that is newer than
// this binary ([*VersionError]). Other errors wrap what the driver said, for [errors.As] with *pgconn.PgError.
//
// The lock belongs to the session, so url must not lead through a transaction pooler.
func Apply(ctx context.Context, url string) ([]Migration, error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("read the database's URL: %w", err)
	}
	db := stdlib.OpenDB(*cfg, stdlib.OptionAfterConnect(prepare))
	defer db.Close()      //nolint:errcheck // every statement's outcome is known by now
	db.SetMaxOpenConns(1) // the one session that has the lock

	provider, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithTableName(versionTable), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return nil, fmt.Errorf("read the embedded migrations: %w", err)
	}
	results, err := provider.Up(ctx)
	if err != nil {
		err = fmt.Errorf("apply migrations: %w", err)
	}
	// Some may have been applied before one failed.
	if partial := (*goose.PartialError)(nil); errors.As(err, &partial) {
		results = partial.Applied
	}
	if len(results) == 0 {
		return nil, err
	}
	fresh := make(map[int64]bool, len(results))
	for _, result := range results {
		fresh[result.Source.Version] = true
	}
	all, statusErr := Status(ctx, url)
	applied := slices.DeleteFunc(all, func(m Migration) bool { return !fresh[m.Version] })
	return applied, errors.Join(err, statusErr)
}

// Status lists this binary's migrations in order, and after them those of a newer one that the database has; which are
// applied and when. It changes nothing, and works on a standby.
func Status(ctx context.Context, url string) ([]Migration, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("read the schema's version: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing was written

	found, err := look(ctx, conn)
	if err != nil {
		return nil, err
	}
	at := map[int64]time.Time{}
	if found.versions {
		if at, err = appliedAt(ctx, conn); err != nil {
			return nil, err
		}
	}
	all := known()
	for i := range all {
		all[i].AppliedAt = at[all[i].Version]
	}
	for _, version := range slices.Sorted(maps.Keys(at)) {
		if version > Version() {
			all = append(all, Migration{Version: version, AppliedAt: at[version]})
		}
	}
	return all, nil
}

// Version is the schema version that this binary works with.
func Version() int64 {
	all := known()
	return all[len(all)-1].Version
}

// known lists the embedded migrations in order.
func known() []Migration {
	names, err := files.ReadDir(".") // sorted by name, hence by version: names start with five digits
	if err != nil {
		panic(err) // impossible: the embedded root always opens
	}
	all := make([]Migration, len(names))
	for i, name := range names {
		version, err := goose.NumericComponent(name.Name())
		if err != nil {
			panic(err) // a misnamed file of this package
		}
		all[i] = Migration{Version: version, Name: name.Name()}
	}
	return all
}

// prepare makes a new session ready for goose, before which it touches nothing: not even for goose's own table. The lock is
// held until the session ends.
func prepare(ctx context.Context, conn *pgx.Conn) error {
	if err := vet(ctx, conn); err != nil {
		// pgx's stdlib would leave the connection open, and with it the lock held.
		return errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
	}
	return nil
}

func vet(ctx context.Context, conn *pgx.Conn) error {
	// Independent of the role's settings: goose stores local times, and a statement timeout must not stop half-way what may
	// take long. Waiting for a lock is bounded, since others queue behind it.
	_, err := conn.Exec(ctx, `SET timezone = 'UTC'; SET statement_timeout = 0; SET lock_timeout = '10s'`)
	if err != nil {
		return fmt.Errorf("prepare the session: %w", err)
	}
	if err := acquire(ctx, conn); err != nil {
		return err
	}
	found, err := look(ctx, conn)
	if err != nil {
		return err
	}
	var version *VersionError
	err = found.check()
	if errors.Is(err, ErrNoSchema) || errors.As(err, &version) && !version.Newer() {
		return nil // there is something to apply
	}
	return err
}

var errLocked = errors.New("another process is applying migrations")

// acquire waits for lockID. It polls: a waiting pg_advisory_lock would hold a snapshot, and by that stop a CREATE INDEX
// CONCURRENTLY that the lock's holder may be running.
func acquire(ctx context.Context, conn *pgx.Conn) error {
	pace := backoff.NewExponentialBackOff()
	pace.InitialInterval, pace.MaxInterval = 50*time.Millisecond, time.Second
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		var acquired bool
		if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, int64(lockID)).Scan(&acquired); err != nil {
			return struct{}{}, backoff.Permanent(fmt.Errorf("take the migration lock: %w", err))
		}
		if !acquired {
			return struct{}{}, errLocked
		}
		return struct{}{}, nil
	}, backoff.WithBackOff(pace), backoff.WithMaxElapsedTime(patience))
	return err
}
