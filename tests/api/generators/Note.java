// Posts a `note` event with all optional fields, lists the inbox that it came to, and reads an error, by a client of
// openapi-generator; prints what it saw as JSON.

import java.time.OffsetDateTime;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import org.openapitools.client.ApiClient;
import org.openapitools.client.ApiException;
import org.openapitools.client.api.EventsApi;
import org.openapitools.client.api.NotificationsApi;
import org.openapitools.client.model.ErrorEntry;
import org.openapitools.client.model.Errors;
import org.openapitools.client.model.NewEvent;
import org.openapitools.client.model.Notification;
import org.openapitools.client.model.NoteData;
import org.openapitools.client.model.NoteDataCase;
import org.openapitools.client.model.NoteDataUser;
import org.openapitools.client.model.NoteEvent;
import org.openapitools.client.model.NoteParams;
import org.openapitools.client.model.Notify;

public class Note {
  static ApiClient client(String url, String token) {
    ApiClient made = new ApiClient();
    made.updateBaseUri(url);
    made.setRequestInterceptor(request -> request.header("Authorization", "Bearer " + token));
    return made;
  }

  static NoteEvent note(Notify notify) {
    NoteDataCase about = new NoteDataCase();
    about.setId(UUID.fromString("65e48afe-7307-3ad3-9fc1-9ec7e6dc0a88"));
    about.setCaseNumber(6);
    about.setRelationsPathName("Case type");
    NoteData data = new NoteData();
    data.setUser(new NoteDataUser(4));
    data.setCase(about);
    NoteParams params = new NoteParams();
    params.setContact("Jane Doe");
    params.setBody("Hey");
    params.setContactId(UUID.fromString("c2ccbb7e-d174-4894-ba5a-1828d0f09128"));
    NoteEvent event = new NoteEvent();
    event.setType(NoteEvent.TypeEnum.NOTE);
    event.setNotify(notify);
    event.setData(data);
    event.setParams(params);
    return event;
  }

  public static void main(String[] given) throws Exception {
    ApiClient crm = client(given[0], given[1]);
    ApiClient phone = client(given[0], given[2]);
    EventsApi events = new EventsApi(crm);

    Notify notify = new Notify();
    notify.setUsers(List.of(1));
    notify.setExcept(List.of(3));
    notify.setUnknown(Notify.UnknownEnum.SKIP);
    NoteEvent event = note(notify);
    event.setId(UUID.fromString(given[3]));
    event.setKey("generated");
    event.setDeliverAt(OffsetDateTime.parse("2020-01-01T00:00:00Z"));
    event.setAbout(List.of("order:42"));

    Map<String, Object> seen = new LinkedHashMap<>();
    seen.put("posted", events.postEvent(new NewEvent(event), null).getId());
    events.getEvent(event.getId(), 10);
    seen.put("listed", new NotificationsApi(phone).listNotifications(1, 100, null, null, null).getData().stream()
        .map(Notification::getId).toList());
    try {
      Notify unknown = new Notify();
      unknown.setUsers(List.of(99));
      events.postEvent(new NewEvent(note(unknown)), null);
    } catch (ApiException error) {
      Errors errors = crm.getObjectMapper().readValue(error.getResponseBody(), Errors.class);
      seen.put("refused", errors.getErrors().stream().map(ErrorEntry::getField).toList());
    }
    System.out.println(crm.getObjectMapper().writeValueAsString(seen));
  }
}
