package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// ceiling returns how many rows a second the server takes over so many connections, when all they do is COPY. The first time counts for nothing: a new server
// has to make the files of its WAL, which it uses again from then on.
func (b *bench) ceiling(ctx context.Context, l *load, indexes string, connections int) (r rates, err error) {
	if !b.warm {
		b.warm = true
		if r, err = b.ceiling(ctx, l, indexes, connections); err != nil {
			return r, err
		}
	}
	err = b.onTable(ctx, l, indexes, func(db *database) error {
		progress, err := copyAll(ctx, db, l, connections)
		if err == nil {
			r = ratesOf(progress, 0, l.events)
		}
		return err
	})
	return r, err
}

// copyAll stores all chunks, a transaction each, and returns how that got on.
func copyAll(ctx context.Context, db *database, l *load, connections int) (progress []point, err error) {
	conns, closing, err := connectAll(ctx, db.url, connections)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closing(context.WithoutCancel(ctx))) }()
	if err := db.checkpoint(ctx); err != nil {
		return nil, err
	}
	progress, err = copyChunks(ctx, conns, l.chunks)
	if err != nil {
		return nil, err
	}
	if stored := progress[len(progress)-1].stored; stored != int64(l.events) {
		return nil, fmt.Errorf("%d of %d rows copied", stored, l.events)
	}
	return progress, nil
}

// connectAll opens so many connections. closing closes them.
func connectAll(ctx context.Context, url string, connections int) (conns []*pgx.Conn, closing func(context.Context) error, err error) {
	closing = func(ctx context.Context) (err error) {
		for _, conn := range conns {
			err = errors.Join(err, conn.Close(ctx))
		}
		return err
	}
	for range connections {
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			return nil, nil, fmt.Errorf("connect: %w", errors.Join(err, closing(context.WithoutCancel(ctx))))
		}
		conns = append(conns, conn)
	}
	return conns, closing, nil
}

// copyChunks stores chunks over all connections, a transaction each, and returns how that got on.
func copyChunks(ctx context.Context, conns []*pgx.Conn, chunks [][]byte) ([]point, error) {
	queue := make(chan []byte, len(chunks))
	for _, chunk := range chunks {
		queue <- chunk
	}
	close(queue)
	var mu sync.Mutex // guards progress
	progress := []point{{at: time.Now()}}
	group, ctx := errgroup.WithContext(ctx)
	for _, conn := range conns {
		group.Go(func() error {
			for chunk := range queue {
				// Outside of a transaction a statement is one, without round trips for BEGIN and COMMIT.
				tag, err := conn.PgConn().CopyFrom(ctx, bytes.NewReader(chunk), copyRows)
				if err != nil {
					return fmt.Errorf("copy: %w", err)
				}
				mu.Lock()
				progress = append(progress, point{time.Now(), progress[len(progress)-1].stored + tag.RowsAffected()})
				mu.Unlock()
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return progress, nil
}
