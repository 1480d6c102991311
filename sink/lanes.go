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
	LaneID      int32     `json:"lane_id"`
	Topic       string    `json:"topic"`
	TopicID     string    `json:"topic_id"`
	Partition   int32     `json:"partition"`
	Group       string    `json:"consumer_group"`
	Epoch       int64     `json:"epoch"`
	Owner       string    `json:"owner"`
	NextOffset  int64     `json:"next_offset"`
	LeaderEpoch int32     `json:"leader_epoch"`
	State       string    `json:"state"`
	Reason      string    `json:"reason,omitempty"` // why it halted
	UpdatedAt   time.Time `json:"updated_at"`
}

// Lanes lists all lanes, by topic and partition number.
func Lanes(ctx context.Context, pool *postgres.Pool) ([]LaneStatus, error) {
	return lanes(ctx, pool, `true`)
}

// InUse lists the lanes of the given topics, whatever their group, those that were retired left out.
func (s *Sink) InUse(ctx context.Context, topics []string) ([]LaneStatus, error) {
	return lanes(ctx, s.pool, `topic = ANY ($1) AND state <> 'retired'`, topics)
}

// TopicIDText is a topic ID as [LaneStatus] has it.
func TopicIDText(id [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

func lanes(ctx context.Context, pool *postgres.Pool, where string, args ...any) ([]LaneStatus, error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	rows, err := conn.Query(ctx, `
		SELECT lane_id, topic, topic_id::text, partition, consumer_group, epoch, coalesce(owner, ''), next_offset, leader_epoch, state,
		       coalesce((SELECT reason FROM audit_lane_event e WHERE e.lane_id = l.lane_id AND kind = 'halted' AND state = 'halted' ORDER BY id DESC LIMIT 1), ''),
		       updated_at
		FROM audit_lane l WHERE `+where+` ORDER BY topic, partition, lane_id`, args...)
	if err != nil {
		return nil, fmt.Errorf("list the lanes: %w", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[LaneStatus])
	if err != nil {
		return nil, fmt.Errorf("list the lanes: %w", err)
	}
	return all, nil
}
