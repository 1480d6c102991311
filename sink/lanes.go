package sink

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"auditsink/internal/postgres"
)

// LaneStatus is a lane as Postgres knows it.
type LaneStatus struct {
	LaneID     int32     `json:"lane_id"`
	Topic      string    `json:"topic"`
	TopicID    string    `json:"topic_id"`
	Partition  int32     `json:"partition"`
	Group      string    `json:"consumer_group"`
	Epoch      int64     `json:"epoch"`
	Owner      string    `json:"owner"`
	NextOffset int64     `json:"next_offset"`
	State      string    `json:"state"`
	UpdatedAt  time.Time `json:"updated_at"`
}

// Lanes lists all lanes, by topic and partition number.
func Lanes(ctx context.Context, pool *postgres.Pool) ([]LaneStatus, error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	rows, err := conn.Query(ctx, `
		SELECT lane_id, topic, topic_id::text, partition, consumer_group, epoch, coalesce(owner, ''), next_offset, state, updated_at
		FROM audit_lane ORDER BY topic, partition, lane_id`)
	if err != nil {
		return nil, fmt.Errorf("list the lanes: %w", err)
	}
	lanes, err := pgx.CollectRows(rows, pgx.RowToStructByPos[LaneStatus])
	if err != nil {
		return nil, fmt.Errorf("list the lanes: %w", err)
	}
	return lanes, nil
}
