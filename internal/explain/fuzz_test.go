package explain

import (
	"encoding/json"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

// FuzzStory tells what a server of any version may have put in: there is always
// a summary, and all of it can be shown as JSON if its times can.
func FuzzStory(f *testing.F) {
	odd := handedOver()
	odd.Story[0].At, odd.Story[1].State, odd.Story[1].Event = nil, "of a newer server", "unheard of"
	odd.Limits = []*godwitv1.PolicyValue{{Name: "unheard of", Ms: -1 << 63}}
	far := handedOver()
	far.SourceMarks.Stopped = &timestamppb.Timestamp{Seconds: 1 << 60, Nanos: -1}
	long := handedOver()
	for range 20 {
		long.Passes = append(long.Passes, &godwitv1.Pass{RemainingBytes: 1<<64 - 1})
	}
	for _, m := range []*godwitv1.Migration{{}, handedOver(), odd, far, long} {
		text, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		m := &godwitv1.Migration{}
		if proto.Unmarshal(text, m) != nil {
			return
		}
		story := Of(m)
		if len(story.Summary) == 0 || len(story.Timeline) == 0 {
			t.Error("nothing is told")
		}
		for _, line := range story.Timeline {
			if year := line.At.Year(); year < 0 || year > 9999 { // JSON has none of these (RFC 3339)
				return
			}
		}
		if _, err := json.Marshal(story); err != nil {
			t.Errorf("it cannot be shown: %v", err)
		}
	})
}
